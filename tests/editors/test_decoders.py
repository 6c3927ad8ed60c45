"""ROME and MEMIT on every decoder: the target becomes the greedy answer, the base comes back bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.editors import collect_second_moments, get_editor
from peft_prune.editors.values import ValueSettings, optimize_values
from peft_prune.session import EditSession
from tests.decoders import DECODERS, tiny_decoder
from tests.editors.test_rome import TEXTS
from tests.families import tiny_family
from tests.talking import spaced_tokenizer

REQUESTS = [
    EditRequest("note sea {}", "sane ant", "ten"),
    EditRequest("tan {}", "tone seat", "sea"),
    EditRequest("the tea {}", "oats", "son"),
]
NORMED = ("gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4")
"""They norm what an MLP puts out; in a random model one layer then has too little say for a batch."""

STRONG = {
    "v_num_grad_steps": 150,
    "v_lr": 0.5,
    "clamp_norm_factor": 1000.0,
    "v_weight_decay": 0.0,
    "kl_factor": 0.0,
    "stop_probability": 0.8,
    "mom2_shrinkage": 1e-2,
    "context_lengths": ((3, 2),),
}


def editable(name: str) -> Any:
    return loud(tiny_decoder(name))


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights of ordinary size, so that the layers of a tiny model say something."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    return model


def outcomes_of(base: PreTrainedModel, editor_name: str, requests: Sequence[EditRequest], **more: Any) -> list[Any]:
    tokenizer = spaced_tokenizer()
    ids = torch.arange(1, 9)[None]
    before: Tensor = base(ids).logits
    editor = get_editor(editor_name, **{**STRONG, **more})
    model = get_peft_model(
        base, PruneEditConfig(layers_to_transform=list(editor.layers(base)), restraint="none")
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        moments = collect_second_moments(model, tokenizer, TEXTS, editor.modules(model), progress=False)
        session = EditSession(model, tokenizer, editor, statistics=moments, monitor=False, on_failure="keep")
        outcomes = session.edit(requests, batch_size=len(requests))
    assert not torch.equal(model(ids).logits, before)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, before)
    return outcomes


def answers_so_far(outcome: Any) -> bool:
    """Whether the answer begins with the target: a random model of letters does not know where a word ends."""
    return outcome.answer_after.strip().startswith(outcome.request.target_new)


TAKING = [name for name in DECODERS if name != "glm4"]
"""Of a random GLM-4, with a norm behind attention and MLP alike, no layer has enough say for an edit to take."""


@pytest.mark.parametrize("name", TAKING)
def test_a_rome_edit_makes_the_target_the_greedy_answer(name: str) -> None:
    (outcome,) = outcomes_of(editable(name), "rome", REQUESTS[:1], layers=(1,))
    assert answers_so_far(outcome), outcome.reason


@pytest.mark.parametrize("name", TAKING)
def test_a_memit_batch_makes_each_target_the_greedy_answer(name: str) -> None:
    requests = REQUESTS[:1] if name in NORMED or name == "biogpt" else REQUESTS
    outcomes = outcomes_of(editable(name), "memit", requests, layers=(0, 1), mom2_update_weight=1e-3)
    assert all(map(answers_so_far, outcomes)), [outcome.reason for outcome in outcomes]


IN_PARTS = {"gemma3": 2, "llava": 0, "qwen2_5_vl": 0, "mllama": 0, "falcon_h1": 0, "deepseek_v3": 0, "bert": 0}
"""The edited layer: beside a vision tower as deep, beside mixers, before experts, of an MLP in two parts."""


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_rome_edit_takes_where_the_decoder_or_the_mlp_is_one_part_of_several(name: str) -> None:
    words = {"vocab_size": 50}  # those of the tokenizer
    base = tiny_family(name, **({"text_config": words} if name in ("gemma3", "llava", "qwen2_5_vl") else words))
    (outcome,) = outcomes_of(loud(base), "rome", REQUESTS[:1], layers=(IN_PARTS[name],))
    assert answers_so_far(outcome), outcome.reason


@pytest.mark.parametrize("name", DECODERS)
def test_kept_keys_and_values_change_no_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = editable(name), spaced_tokenizer()
    requests = [EditRequest("{} eat", "tone seat", "sea"), REQUESTS[0]]
    for site in ("mlp", "block"):
        settings = ValueSettings(steps=3, learning_rate=0.05, site=site, clamp_factor=100.0)
        fast = optimize_values(model, tokenizer, requests, ("", "stone tea."), 0, settings)
        with monkeypatch.context() as patch:
            patch.setattr("peft_prune.editors.later_layers.LaterLayers._run_prefix", lambda self: None)
            plain = optimize_values(model, tokenizer, requests, ("", "stone tea."), 0, settings)
        for one, other in zip(fast, plain, strict=True):
            assert one.steps == other.steps and one.loss == pytest.approx(other.loss, rel=1e-4, abs=1e-5)
            assert torch.allclose(one.delta, other.delta, rtol=1e-3, atol=1e-4 * float(other.delta.norm()))
