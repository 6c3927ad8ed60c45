"""Every road to inference gives the same model."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_prune import PruneEditConfig
from tests.tiny import tiny_gpt2, tiny_llama
from tests.tuner.test_edits import INPUTS, base_weight, dense_log, strong


def edited_model(build, adapter_name: str = "default", seed: int = 0, **config):
    model = get_peft_model(build(), PruneEditConfig(layers_to_transform=[1], **config), adapter_name).eval()
    add_strong_edits(model, adapter_name, seed)
    return model


def add_strong_edits(model, adapter_name: str = "default", seed: int = 0, count: int = 3) -> None:
    for name, layer in model.edited_layers(adapter_name):
        for offset in range(count):
            model.add_edits({name: strong(layer, seed + offset)}, adapter_name=adapter_name)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_logits_equal_unmerged_logits_after_a_restraint(build, dtype: torch.dtype) -> None:
    model = edited_model(lambda: build(dtype=dtype), restrain_every=3)
    assert not model.restraint_is_pending()
    unmerged = model(INPUTS).logits
    model.merge_adapter(safe_merge=True)
    atol = 1e-5 if dtype == torch.float32 else 3e-2
    assert torch.allclose(model(INPUTS).logits, unmerged, atol=atol)
    model.unmerge_adapter()
    assert torch.equal(model(INPUTS).logits, unmerged)
    merged = model.merge_and_unload(safe_merge=True)
    assert not has_adapter_layers(merged)
    assert torch.allclose(merged(INPUTS).logits, unmerged, atol=atol)


def has_adapter_layers(model) -> bool:
    return any(hasattr(module, "prune_edit_A") for module in model.modules())


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_unmerging_gives_the_base_weight_back_bit_for_bit(build, dtype: torch.dtype) -> None:
    base = build(dtype=dtype)
    model = get_peft_model(base, PruneEditConfig())
    add_strong_edits(model)
    layers = [layer for _, layer in model.edited_layers()]
    before = [layer.get_base_layer().weight.clone() for layer in layers]
    model.merge_adapter()
    assert not any(torch.equal(b, layer.get_base_layer().weight) for b, layer in zip(before, layers, strict=True))
    model.unmerge_adapter()
    assert all(torch.equal(b, layer.get_base_layer().weight) for b, layer in zip(before, layers, strict=True))


def test_merging_applies_a_pending_restraint() -> None:
    model = edited_model(tiny_gpt2, restrain_on="merge")
    ((_, layer),) = model.edited_layers()
    base = base_weight(layer).clone()
    raw = layer.raw_update("default").dense().double()
    model.merge_adapter()
    expected = base.double() + dense_log(raw, base, 1.2)
    assert torch.allclose(base_weight(layer).double(), expected, atol=1e-5 * float(raw.norm()))
    assert not torch.allclose(base_weight(layer).double(), base.double() + raw, atol=1e-2 * float(raw.norm()))


def test_merging_never_adds_the_restrained_update_onto_an_edited_weight() -> None:
    """W0 + F(ΣΔW), never W0 + ΣΔW + F(ΣΔW)."""
    model = edited_model(tiny_gpt2, restrain_on="merge")
    ((_, layer),) = model.edited_layers()
    base = base_weight(layer).clone().double()
    raw = layer.raw_update("default").dense().double()
    merged = model.merge_and_unload()
    weight = merged.transformer.h[1].mlp.c_proj.weight.T.double()
    assert torch.allclose(weight, base + dense_log(raw, base, 1.2), atol=1e-5 * float(raw.norm()))


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_without_a_restraint_merging_changes_no_output(build) -> None:
    model = edited_model(build, restraint="none")
    expected = model(INPUTS).logits
    assert not model.restraint_is_pending()
    assert torch.allclose(model.merge_and_unload()(INPUTS).logits, expected, atol=2e-4)


def test_several_adapters_merge_and_unmerge_in_any_order() -> None:
    model = edited_model(tiny_gpt2, "first", restrain_every=3)
    model.add_adapter("second", PruneEditConfig(layers_to_transform=[1, 2], restrain_every=3))
    add_strong_edits(model, "second", seed=10)
    base_out = {}
    for names in (["first"], ["second"], ["first", "second"]):
        model.base_model.set_adapter(names)
        base_out[tuple(names)] = model(INPUTS).logits
    for order in (["first", "second"], ["second", "first"]):
        model.base_model.set_adapter(order)
        for name in order:
            model.merge_adapter([name])
        assert torch.allclose(model(INPUTS).logits, base_out["first", "second"], atol=1e-4)
        model.unmerge_adapter()
        assert torch.equal(model(INPUTS).logits, model(INPUTS).logits)
    for name in ("first", "second"):
        model.set_adapter(name)
        assert torch.equal(model(INPUTS).logits, base_out[(name,)])


def test_a_restraint_pending_while_another_adapter_is_merged_is_relative_to_the_base() -> None:
    model = edited_model(tiny_gpt2, "first", restrain_every=3)
    model.add_adapter("second", PruneEditConfig(layers_to_transform=[1], restrain_on="merge"))
    add_strong_edits(model, "second", seed=10)
    layer = dict(model.edited_layers("second"))["transformer.h.1.mlp.c_proj"]
    base = base_weight(layer).clone()
    raw = layer.raw_update("second").dense().double()
    layer._sigma_max_base = None
    model.merge_adapter(["first"])
    model.merge_adapter(["second"])
    expected = dense_log(raw, base, 1.2)
    assert torch.allclose(layer.effective_update("second").dense().double(), expected, atol=1e-5 * float(raw.norm()))


def test_a_merge_that_is_not_finite_is_refused_and_leaves_the_weight_alone() -> None:
    model = edited_model(tiny_gpt2, restraint="none")
    ((_, layer),) = model.edited_layers()
    before = layer.get_base_layer().weight.clone()
    layer.prune_edit_B["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or Inf in the merged weights"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, before) and not layer.merged


def test_deleting_an_adapter_leaves_the_others_as_they_were() -> None:
    model = edited_model(tiny_gpt2, restrain_every=3)
    expected = model(INPUTS).logits
    model.add_adapter("second", PruneEditConfig(layers_to_transform=[1]))
    add_strong_edits(model, "second", seed=10)
    model.delete_adapter("second")
    assert torch.equal(model(INPUTS).logits, expected)
    assert [len(layer.prune_edit_update) for _, layer in model.edited_layers()] == [1]


def test_a_converted_lora_adapter_agrees_and_a_pending_restraint_is_applied_to_it() -> None:
    from peft import convert_to_lora, set_peft_model_state_dict

    model = edited_model(tiny_gpt2, restrain_on="merge")
    config, state_dict = convert_to_lora(model, rank=8)
    lora = get_peft_model(tiny_gpt2(), config)
    set_peft_model_state_dict(lora, state_dict)
    assert model.restraint_is_pending()
    model.restrain()
    assert torch.allclose(lora.eval()(INPUTS).logits, model(INPUTS).logits, atol=1e-4)


def test_a_merged_and_reloaded_model_is_a_plain_one(tmp_path) -> None:
    model = edited_model(tiny_llama, restrain_every=3)
    expected = model(INPUTS).logits
    model.merge_and_unload().save_pretrained(tmp_path)
    from transformers import AutoModelForCausalLM

    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert not isinstance(reloaded, PeftModel)
    assert torch.allclose(reloaded(INPUTS).logits, expected, atol=1e-5)
