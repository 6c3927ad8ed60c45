"""The scale of a second moment: one channel that stands apart decides nothing."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from peft_prune import EditRequest
from peft_prune.editors import collect_second_moments, get_editor
from peft_prune.editors.second_moment import mean_diagonal, regularized_cholesky
from tests.editors.test_rome import TEXTS
from tests.talking import spaced_tokenizer
from tests.tiny import willing

REQUEST = EditRequest("note sea {}", "sane ant", "ten")
SETTINGS = {"v_num_grad_steps": 40, "v_lr": 0.3, "clamp_norm_factor": 20.0, "context_lengths": ((4, 2),)}
KINDS = {
    "rome": {"mom2_shrinkage": 1e-3},
    "memit": {"mom2_update_weight": 10.0, "mom2_shrinkage": 1e-3},
    "emmet": {"mom2_update_weight": 1.0, "mom2_shrinkage": 1e-3},
    "alphaedit": {},
}


def with_a_channel_at(value: float) -> PreTrainedModel:
    """A model one of whose MLP channels stands at ``value`` whatever the text, and is read by nothing."""
    model = willing("gpt2")
    mlp = model.transformer.h[1].mlp
    with torch.no_grad():
        mlp.c_fc.weight[:, 5] = 0.0
        mlp.c_fc.bias[5] = value
        mlp.c_proj.weight[5] = 0.0
    return model


def share_of_other_keys(name: str, value: float) -> float:
    """Mean size of an update's effect on the keys of ordinary text, as a share of that on its own key."""
    model, tokenizer = with_a_channel_at(value), spaced_tokenizer()
    editor = get_editor(name, layers=(1,), **SETTINGS, **KINDS[name])
    (module,) = editor.modules(model)
    moments = collect_second_moments(model, tokenizer, TEXTS, [module], progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is singular here
        edit = editor.compute(model, tokenizer, [REQUEST], editor.prepare(model, tokenizer, moments))
    assert min(edit.probability) > 3 * max(edit.probability_before)
    keys: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda m, args: keys.append(args[0][0].detach()))
    for text in [REQUEST.text, *TEXTS]:
        model(torch.tensor([tokenizer(text)["input_ids"]]))
    handle.remove()
    row = edit.updates[module].A[0]
    own = float((keys[0][-1] @ row).abs())
    return float((torch.cat(keys[1:]) @ row).abs().mean()) / own


@pytest.mark.parametrize("name", sorted(KINDS))
def test_one_channel_at_ten_thousand_makes_no_update_reach_further(name: str) -> None:
    assert share_of_other_keys(name, 1e4) < 1.2 * share_of_other_keys(name, 0.0)


def test_the_scale_is_the_mean_of_an_ordinary_diagonal() -> None:
    diagonal = torch.logspace(-3, 0, 50, dtype=torch.float64)
    assert float(mean_diagonal(torch.diag(diagonal))) == pytest.approx(float(diagonal.mean()), rel=1e-12)


@pytest.mark.parametrize("loud", [1, 5])
def test_channels_that_stand_apart_count_for_a_hundred_medians(loud: int) -> None:
    diagonal = torch.ones(200, dtype=torch.float64)
    diagonal[:loud], diagonal[loud : loud + 120] = 1e8, 0.0  # a ReLU leaves channels that never fire
    expected = (100 * loud + (80 - loud)) / 200
    assert float(mean_diagonal(torch.diag(diagonal))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_moment_of_nothing_is_refused_and_not_waited_for(value: float) -> None:
    with pytest.raises(ValueError, match=r"second moment is 0|holds NaN or Inf"):
        regularized_cholesky(torch.full((4, 4), value))
    broken = torch.eye(4)
    broken[0, 1] = float("nan")
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        regularized_cholesky(broken)


def test_batches_of_few_tokens_give_the_moment_of_large_ones() -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    (module,) = get_editor("rome", layers=(1,)).modules(model)
    whole, parts = (
        collect_second_moments(model, tokenizer, TEXTS, [module], max_tokens=most, progress=False)
        for most in (16384, 10)
    )
    assert whole.tokens == parts.tokens
    assert torch.allclose(whole.moments[module], parts.moments[module], rtol=1e-4, atol=1e-6)
