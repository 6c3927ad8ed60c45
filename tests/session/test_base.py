"""A session needs the base that its history is about, and nothing but that."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from peft_prune import AdapterError, PruneEditConfig
from peft_prune.editors import ROME
from peft_prune.errors import HistoryError
from peft_prune.session import EditSession, History, adapter_of
from tests.editors.test_rome import EASY
from tests.session.scene import MODULE, REQUESTS, moments, session
from tests.talking import spaced_tokenizer
from tests.tiny import willing

LORA = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)


def with_lora() -> torch.nn.Module:
    model = willing("gpt2")
    model.add_adapter(LORA)
    return model


def with_prune() -> torch.nn.Module:
    """As transformers attaches an adapter that lies beside the weights."""
    model = willing("gpt2")
    model.add_adapter(PruneEditConfig())
    return model


def with_prompt() -> torch.nn.Module:
    """No layer of it tells of the adapter."""
    return get_peft_model(willing("gpt2"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def with_prefix() -> torch.nn.Module:
    return get_peft_model(willing("gpt2"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


CARRIED = [
    (with_lora, "LORA"),
    (with_prune, "PRUNE_EDIT"),
    (with_prompt, "PROMPT_TUNING"),
    (with_prefix, "PREFIX_TUNING"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_history_is_not_gone_on_with_on_an_edited_base(tmp_path, dtype) -> None:
    path = tmp_path / "edits.db"
    with session(path) as editing:
        editing.edit(REQUESTS[:1])
    base = willing("gpt2")
    weight = base.get_submodule(MODULE).weight
    with torch.no_grad():
        weight[0, 0] += 0.05 * torch.linalg.matrix_norm(weight, 2)
    with pytest.raises(HistoryError, match=r"belongs to GPT2LMHeadModel \(weights .*the model is GPT2LMHeadModel"):
        EditSession.resume(path, base.to(dtype), spaced_tokenizer())
    with History.read(path) as log, pytest.raises(HistoryError, match="belongs to GPT2LMHeadModel"):
        adapter_of(log, base)
    with EditSession.resume(path, willing("gpt2").to(dtype), spaced_tokenizer()) as editing:
        assert editing.history.standing == 1


@pytest.mark.parametrize(("build", "method"), CARRIED)
def test_a_base_that_carries_an_adapter_is_refused_by_name(tmp_path, build, method) -> None:
    with pytest.raises(AdapterError, match=rf"model: it carries an adapter \({method}\)"):
        EditSession(build(), spaced_tokenizer(), ROME(EASY), statistics=moments())
    path = tmp_path / "edits.db"
    with session(path) as editing:
        editing.edit(REQUESTS[:1])
    with pytest.raises(AdapterError, match=rf"model: it carries an adapter \({method}\)"):
        EditSession.resume(path, build(), spaced_tokenizer())
    with History.read(path) as log, pytest.raises(AdapterError, match=rf"it carries an adapter \({method}\)"):
        adapter_of(log, build())


def test_an_adapter_over_another_methods_is_refused_by_name() -> None:
    model = get_peft_model(with_lora(), PruneEditConfig(layers_to_transform=[1]), adapter_name="edits")
    with pytest.raises(AdapterError, match=r"model: it carries an adapter \(LORA\)"):
        EditSession(model, spaced_tokenizer(), ROME(EASY), statistics=moments())


def test_a_history_names_its_base_without_a_path(tmp_path) -> None:
    willing("gpt2").save_pretrained(tmp_path / "secret" / "my-base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "secret" / "my-base")
    with EditSession(
        base, spaced_tokenizer(), ROME(EASY), statistics=moments(), history=tmp_path / "edits.db"
    ) as editing:
        assert editing.history.meta["model"] == "my-base" and editing.settings()["model"] == "my-base"
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.glob("edits.db*"))
