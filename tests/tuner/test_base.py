"""What a saved adapter says of its base, and what it says when the base is another or carries other adapters."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from peft_prune import AdapterError, PruneEditConfig
from tests.tiny import tiny_llama
from tests.tuner.test_edits import INPUTS
from tests.tuner.test_merge import add_strong_edits

LORA = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)


def edited(base: PreTrainedModel) -> PeftModel:
    model = get_peft_model(base, PruneEditConfig(layers_to_transform=[1], task_type="CAUSAL_LM")).eval()
    add_strong_edits(model)
    return model


def with_lora(seed: int = 0) -> PreTrainedModel:
    """A base that carries a LoRA adapter, attached as transformers does it."""
    model = tiny_llama()
    torch.manual_seed(seed)
    model.add_adapter(LORA)
    return model


def loaded(base: PreTrainedModel, folder: Path, **options: object) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute|.*config file")
        return PeftModel.from_pretrained(base, folder, **options)


def test_an_adapter_on_its_own_merged_checkpoint_is_noticed(tmp_path) -> None:
    model = edited(tiny_llama())
    model.save_pretrained(tmp_path)
    merged = model.merge_and_unload()
    with pytest.raises(AdapterError, match="was made for"):
        PeftModel.from_pretrained(copy.deepcopy(merged), tmp_path, strict_base=True)
    with pytest.warns(UserWarning, match="a checkpoint that they were merged into would have them twice"):
        PeftModel.from_pretrained(merged, tmp_path)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_edit_of_any_layer_of_the_base_is_noticed(tmp_path, layer: int) -> None:
    edited(tiny_llama()).save_pretrained(tmp_path)
    loaded(tiny_llama(), tmp_path, strict_base=True)
    base = tiny_llama()
    weight = base.model.layers[layer].mlp.down_proj.weight
    with torch.no_grad():
        weight += 0.05 * torch.linalg.matrix_norm(weight, 2) * torch.eye(*weight.shape)
    with pytest.raises(AdapterError, match="was made for"):
        PeftModel.from_pretrained(base, tmp_path, strict_base=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_base_in_another_dtype_is_the_same(tmp_path, dtype, other) -> None:
    edited(tiny_llama(dtype=dtype)).save_pretrained(tmp_path)
    loaded(tiny_llama(dtype=other), tmp_path, strict_base=True)


def test_adapters_beneath_are_written_down_and_compared(tmp_path) -> None:
    edited(with_lora()).save_pretrained(tmp_path / "over")
    edited(tiny_llama()).save_pretrained(tmp_path / "plain")
    over, plain = (json.loads((tmp_path / n / "adapter_config.json").read_text())["beneath"] for n in ("over", "plain"))
    assert plain == [] and len(over) == 1 and over[0].startswith("LORA:")
    loaded(with_lora(), tmp_path / "over", adapter_name="edits", strict_base=True)
    for base, folder in ((tiny_llama(), "over"), (with_lora(seed=1), "over"), (with_lora(), "plain")):
        with pytest.raises(AdapterError, match=r"over a base with .* but this base has "):
            PeftModel.from_pretrained(base, tmp_path / folder, adapter_name="edits", strict_base=True)


def test_a_prune_adapter_of_the_same_name_beneath_is_refused(tmp_path) -> None:
    base = tmp_path / "base"
    tiny_llama().save_pretrained(base)
    edited(AutoModelForCausalLM.from_pretrained(base)).save_pretrained(tmp_path / "adapter")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "adapter" / file, base)
    attached = AutoModelForCausalLM.from_pretrained(base)
    expected = attached(INPUTS).logits
    with pytest.raises(AdapterError, match="adapter 'default': the model carries a PRUNE_EDIT adapter of that name"):
        PeftModel.from_pretrained(attached, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="adapter 'default': the model carries a PRUNE_EDIT adapter of that name"):
        get_peft_model(attached, PruneEditConfig())
    assert torch.equal(attached(INPUTS).logits, expected)


def test_no_file_beside_an_adapter_holds_a_path(tmp_path) -> None:
    base = tmp_path / "secret" / "my-base"
    tiny_llama().save_pretrained(base)
    model = edited(AutoModelForCausalLM.from_pretrained(base))
    model.add_adapter("second", PruneEditConfig(layers_to_transform=[0]))
    model.save_pretrained(tmp_path / "out")
    again = loaded(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out", strict_base=True)
    again.save_pretrained(tmp_path / "again")
    files = [path for name in ("out", "again") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(files) == 8 - 3 + 3
    assert not any(b"secret" in path.read_bytes() for path in files)
    for path in files:
        if path.name == "adapter_config.json":
            assert json.loads(path.read_text())["base_model_name_or_path"] == "my-base"
        if path.name == "README.md":
            assert "base_model: my-base" in path.read_text() and "base_model:adapter:my-base" in path.read_text()


def test_a_card_that_is_not_of_an_adapter_is_left_alone(tmp_path) -> None:
    base = tmp_path / "base"
    tiny_llama().save_pretrained(base)
    (tmp_path / "README.md").write_text(f"My base is in {base}.")
    edited(AutoModelForCausalLM.from_pretrained(base)).save_pretrained(tmp_path / "out")
    assert (tmp_path / "README.md").read_text() == f"My base is in {base}."


def test_a_file_without_these_facts_loads_and_a_malformed_one_is_refused(tmp_path) -> None:
    edited(tiny_llama()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    del settings["beneath"]
    for fingerprint in (None, settings["base_fingerprint"]):
        path.write_text(json.dumps(settings | {"base_fingerprint": fingerprint}))
        loaded(tiny_llama(), tmp_path, strict_base=True)
    path.write_text(json.dumps(settings | {"base_fingerprint": "2:01;x,float32~0,zz"}))
    with pytest.raises(AdapterError, match=r"base_fingerprint: .* is malformed"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
