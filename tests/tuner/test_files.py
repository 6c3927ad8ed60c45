"""Saving, loading, and what a file says of itself."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from peft_prune import AdapterError, PruneEditConfig
from tests.tiny import agree, tiny_gpt2, tiny_llama
from tests.tuner.test_edits import INPUTS, base_weight, dense_log, strong
from tests.tuner.test_merge import add_strong_edits, edited_model


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_bit_equal_after_saving_and_loading(tmp_path, build, low_cpu_mem_usage, dtype) -> None:
    model = edited_model(lambda: build(dtype=dtype), restrain_every=3)
    expected = model(INPUTS).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(dtype=dtype), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert agree(loaded(INPUTS).logits, expected)
    assert all(p.dtype == torch.float32 for n, p in loaded.named_parameters() if "prune_edit" in n)


def test_saving_applies_a_pending_restraint_and_the_file_says_so(tmp_path) -> None:
    model = edited_model(tiny_gpt2, restrain_on="merge")
    ((_, layer),) = model.edited_layers()
    raw, base = layer.raw_update("default").dense().double(), base_weight(layer)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    up, down = (tensors[f"base_model.model.transformer.h.1.mlp.c_proj.prune_edit_{f}.weight"] for f in "BA")
    found = up.double() @ down.double()
    assert torch.allclose(found, dense_log(raw, base, 1.2), atol=1e-5 * float(raw.norm()))
    facts = json.loads((tmp_path / "adapter_config.json").read_text())
    assert facts["restrained"] is True and facts["edits"] == 3
    assert facts["ranks"] == {"transformer.h.1.mlp.c_proj": up.shape[1]}
    # memory and file agree
    assert agree(layer.effective_update("default").dense(), up @ down)


def test_an_unrestrained_file_says_so(tmp_path) -> None:
    edited_model(tiny_gpt2, restraint="none").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["restrained"] is False


def test_a_restrained_file_is_never_restrained_again(tmp_path) -> None:
    model = edited_model(tiny_gpt2, restrain_on="merge")
    model.save_pretrained(tmp_path)
    expected = model(INPUTS).logits
    loaded = PeftModel.from_pretrained(tiny_gpt2(), tmp_path)
    assert not loaded.restraint_is_pending()
    with pytest.raises(AdapterError, match="loaded already restrained"):
        loaded.restrain()
    loaded.merge_adapter()
    assert torch.allclose(loaded(INPUTS).logits, expected, atol=1e-5)


def test_new_edits_on_a_restrained_file_warn_that_the_raw_factors_are_gone(tmp_path) -> None:
    edited_model(tiny_gpt2).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_gpt2(), tmp_path)
    ((name, layer),) = loaded.edited_layers()
    with pytest.warns(UserWarning, match="loaded already restrained"):
        loaded.add_edits({name: strong(layer, 7)})


def test_the_rank_comes_from_the_file_and_not_from_the_configuration(tmp_path) -> None:
    model = edited_model(tiny_gpt2)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["r"] = 11
    settings["ranks"] = None
    path.write_text(json.dumps(settings))
    loaded = PeftModel.from_pretrained(tiny_gpt2(), tmp_path)
    ((_, layer),) = loaded.edited_layers()
    assert layer.rank("default") == 3
    assert agree(loaded(INPUTS).logits, model(INPUTS).logits)


def test_ranks_may_differ_between_layers(tmp_path) -> None:
    model = get_peft_model(tiny_llama(), PruneEditConfig(restrain_every=3)).eval()
    for count, (name, layer) in enumerate(model.edited_layers()):
        for seed in range(count):
            model.add_edits({name: strong(layer, seed)})
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert [layer.rank("default") for _, layer in loaded.edited_layers()] == [0, 1, 2]
    assert agree(loaded(INPUTS).logits, model(INPUTS).logits)


def test_auto_classes_and_transformers_own_loader_give_the_same_model(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # the file names the base's folder, not its path
    base_path, adapter_path = tmp_path / "base", tmp_path / "adapter"
    tiny_llama().save_pretrained(base_path)
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(base_path)
    model = get_peft_model(base, PruneEditConfig(restrain_every=3, task_type="CAUSAL_LM")).eval()
    add_strong_edits(model)
    model.save_pretrained(adapter_path)
    expected = model(INPUTS).logits
    auto = AutoPeftModelForCausalLM.from_pretrained(adapter_path)
    assert agree(auto(INPUTS).logits, expected)
    plain = AutoModelForCausalLM.from_pretrained(base_path)
    plain.load_adapter(str(adapter_path))
    assert agree(plain(INPUTS).logits, expected)
    through_base = AutoModelForCausalLM.from_pretrained(adapter_path)
    assert agree(through_base(INPUTS).logits, expected)


def test_one_of_several_adapters_can_be_saved_and_loaded_beside_another(tmp_path) -> None:
    model = edited_model(tiny_gpt2, "first", restrain_every=3)
    model.add_adapter("second", PruneEditConfig(layers_to_transform=[2], restrain_every=3))
    add_strong_edits(model, "second", seed=5)
    outputs = {}
    for name in ("first", "second"):
        model.set_adapter(name)
        outputs[name] = model(INPUTS).logits
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    assert not (tmp_path / "first").exists()
    loaded = edited_model(tiny_gpt2, "first", restrain_every=3)
    loaded.load_adapter(tmp_path / "second", "again")
    assert torch.equal(loaded(INPUTS).logits, outputs["first"])
    loaded.set_adapter("again")
    assert agree(loaded(INPUTS).logits, outputs["second"])


def test_another_base_is_named_in_a_warning_and_refused_when_asked_to_be_strict(tmp_path) -> None:
    edited_model(tiny_gpt2).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="The adapter was made for .*but the base is GPT2LMHeadModel"):
        PeftModel.from_pretrained(tiny_gpt2(seed=1), tmp_path)
    with pytest.raises(AdapterError, match="was made for"):
        PeftModel.from_pretrained(tiny_gpt2(seed=1), tmp_path, strict_base=True)
    PeftModel.from_pretrained(tiny_gpt2(), tmp_path, strict_base=True)


def test_a_file_for_a_model_of_another_size_or_architecture_is_refused(tmp_path) -> None:
    edited_model(tiny_llama).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="was made for"), pytest.raises(AdapterError, match="made for another base"):
        PeftModel.from_pretrained(tiny_llama(width=32), tmp_path)
    with pytest.raises(ValueError, match="Target modules"):
        PeftModel.from_pretrained(tiny_gpt2(), tmp_path)


def test_a_file_with_a_missing_or_an_extra_factor_is_refused(tmp_path) -> None:
    edited_model(tiny_gpt2).save_pretrained(tmp_path / "whole")
    tensors = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    missing = dict(list(tensors.items())[:-1])
    extra = {**tensors, **{k.replace("h.1", "h.7"): v.clone() for k, v in tensors.items()}}
    for name, content, message in (
        ("missing", missing, "is missing in the adapter's file"),
        ("extra", extra, r"h\.7.*does not adapt"),
    ):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        save_file(content, tmp_path / name / "adapter_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(AdapterError, match=message):
            PeftModel.from_pretrained(tiny_gpt2(), tmp_path / name)
