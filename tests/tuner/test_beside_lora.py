"""What users of PEFT's LoRA do with several adapters gives the same here, for the same factors."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.errors import AdapterError, MergedAdapterError
from tests.tiny import random_update, tiny_gpt2, tiny_llama
from tests.tuner.test_quantized import quantized

RANKS = {"first": 2, "second": 3}
IDS = torch.tensor([[0, 3, 14, 15], [0, 0, 9, 26], [5, 8, 2, 7]])
MASK = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]])


def ours_and_lora(base) -> tuple[PeftModel, PeftModel]:
    """The same two adapters, of different ranks, as PRUNE_EDIT and as LoRA."""
    target = "c_proj" if hasattr(base, "transformer") else "down_proj"
    ours = lora = None
    for name, rank in RANKS.items():
        edit = PruneEditConfig(target_modules=[f"mlp.{target}"], restraint="none", inference_mode=True)
        plain = LoraConfig(r=rank, lora_alpha=rank, target_modules=[f"mlp.{target}"], inference_mode=True)
        if ours is None:
            ours, lora = get_peft_model(copy.deepcopy(base), edit, name), get_peft_model(base, plain, name)
        else:
            ours.add_adapter(name, edit)
            lora.add_adapter(name, plain)
        for index, (module, layer) in enumerate(list(ours.base_model.edited_layers(name))):
            shape = (layer.out_features, layer.in_features)
            update = random_update(shape, rank=rank, scale=0.5, seed=10 * rank + index)
            ours.base_model.add_edits({module: update}, adapter_name=name)
            other = lora.base_model.model.get_submodule(module)
            other.lora_A[name].weight.data.copy_(update.A)
            other.lora_B[name].weight.data.copy_(update.B)
    return ours.eval(), lora.eval()


BASES = {
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "bfloat16": lambda: tiny_llama(dtype=torch.bfloat16),
    "8-bit": lambda: quantized(8),
    "4-bit": lambda: quantized(4),
}


@pytest.fixture(params=BASES)
def models(request) -> tuple[PeftModel, PeftModel]:
    return ours_and_lora(BASES[request.param]())


@torch.no_grad()
def logits(model, **options) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=MASK, **options).logits.float()


def texts(model, **options) -> list[list[int]]:
    settings = {"attention_mask": MASK, "max_new_tokens": 5, "pad_token_id": 0, "do_sample": False}
    return model.generate(input_ids=IDS, **settings, **options).tolist()


def assert_same(models, **options) -> None:
    ours, lora = models
    expected = logits(lora, **options)
    # half precision is rounded at other places
    coarse = next(ours.parameters()).dtype == torch.bfloat16
    assert torch.allclose(
        logits(ours, **options), expected, atol=0.2 if coarse else 1e-4, rtol=1e-2 if coarse else 1e-5
    )
    if not coarse:
        assert texts(ours, **options) == texts(lora, **options)
        assert texts(ours, num_beams=3, **options) == texts(lora, num_beams=3, **options)


def test_a_list_of_active_adapters_and_names_for_each_row(models) -> None:
    ours, lora = models
    alone = logits(ours)
    mixed = ["second", "__base__", "first"]
    for turn in range(2):
        for model in models:
            model.base_model.set_adapter(["first", "second"])
        assert_same(models)
        assert not torch.allclose(logits(ours), alone, atol=1e-2)
        assert_same(models, adapter_names=mixed)
        for model in models:
            model.base_model.set_adapter("first")
        assert_same(models)
        if turn == 0 and ours.base_model.get_submodule("model").dtype == torch.float32 and not _is_quantized(ours):
            ours.merge_adapter(), lora.merge_adapter()
            assert_same(models)
            ours.unmerge_adapter(), lora.unmerge_adapter()


def _is_quantized(model) -> bool:
    return any(type(module).__module__.startswith("bitsandbytes") for module in model.modules())


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, -1.0], [-0.5, 2.0]])
def test_weighted_adapters_add_and_subtract(models, weights: list[float]) -> None:
    for model in models:
        model.add_weighted_adapter(["first", "second"], weights, "sum", combination_type="cat")
        assert model.active_adapters == ["first"]
        assert not any(p.requires_grad for name, p in model.named_parameters() if ".sum." in name)
        model.set_adapter("sum")
    assert_same(models)
    layer = next(layer for _, layer in models[0].base_model.edited_layers("sum"))
    dense = [layer.effective_update(name).dense().double() for name in ("first", "second", "sum")]
    assert torch.allclose(dense[2], weights[0] * dense[0] + weights[1] * dense[1], atol=1e-5)


def test_weighted_adapters_are_truncated_to_a_rank_as_in_lora() -> None:
    models = ours_and_lora(tiny_llama())
    for model in models:
        model.add_weighted_adapter(["first", "second"], [1.0, 0.5], "sum", "svd", svd_rank=2)
        model.set_adapter("sum")
    assert_same(models)
    assert {layer.rank("sum") for _, layer in models[0].base_model.edited_layers()} == {2}
    # PEFT cuts to the larger of both ranks unless told otherwise; here nothing is lost unasked
    models[0].add_weighted_adapter(["first", "second"], [1.0, 0.5], "whole")
    assert {layer.rank("whole") for _, layer in models[0].base_model.edited_layers("whole")} == {5}


@pytest.mark.parametrize("scale", [-1.0, 0.5, 0.0])
def test_a_scale_acts_as_in_lora_merged_or_not(scale: float) -> None:
    models = ours_and_lora(tiny_gpt2())
    plain = logits(models[0])
    for model in models:
        for module in model.modules():
            if hasattr(module, "scale_layer") and scale:
                module.scale_layer(scale)
            elif hasattr(module, "set_scale") and not hasattr(module, "peft_config"):
                module.set_scale("first", scale)
    assert_same(models)
    unmerged = logits(models[0])
    for model in models:
        model.merge_adapter()
    assert_same(models)
    with pytest.raises(MergedAdapterError, match="before scaling"):
        models[0].base_model.set_scale("first", 3.0)
    for model in models:
        model.unmerge_adapter()
    assert torch.equal(logits(models[0]), unmerged) and not torch.allclose(unmerged, plain, atol=1e-3)
    for model in models:
        model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "sum", "cat")
        model.set_adapter("sum")
    assert_same(models)
    models[0].set_adapter("first")
    models[0].base_model.set_scale("first", 1)
    assert torch.equal(logits(models[0]), plain)


def test_a_scaled_adapter_takes_no_edit_and_says_so_when_it_is_saved(tmp_path) -> None:
    model = ours_and_lora(tiny_gpt2())[0]
    name, layer = next(iter(model.base_model.edited_layers("first")))
    model.base_model.set_scale("first", -1)
    with pytest.raises(AdapterError, match=r"its scale in .* is -1\.0, and edits hold at scale 1 only"):
        model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    with pytest.warns(UserWarning, match="its scale is not saved"):
        model.save_pretrained(tmp_path, selected_adapters=["first"])
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be finite"):
            model.base_model.set_scale("first", scale)
    with pytest.raises(ValueError, match="cannot be divided by"):
        layer.unscale_layer(0)
    layer.unscale_layer()
    assert layer.scaling["first"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["first", "third"], [1, 1], "sum"), "adapters: 'third' is not one of first, second"),
        (([], [], "sum"), "must be a list of adapters' names"),
        (("first", [1], "sum"), "must be a list of adapters' names"),
        ((["first", "second"], [1], "sum"), "weights: 1 given for 2 adapters"),
        ((["first", "second"], [1, float("nan")], "sum"), "weights: nan must be a finite number"),
        ((["first", "second"], [1, "2"], "sum"), "weights: '2' must be a finite number"),
        ((["first", "second"], [1, 1], "second"), "'second' is there already"),
        ((["first", "second"], [1, 1], "sum", "linear"), "'linear' does not give the sum"),
        ((["first", "second"], [1, 1], "sum", "ties"), "'ties' does not give the sum"),
        ((["first", "second"], [1, 1], "sum", "cat", 2), "svd_rank: acts with combination_type='svd' alone"),
        ((["first", "second"], [1, 1], "sum", "svd", 0), "max_rank: 0 must be an integer of at least 1"),
    ],
)
def test_what_cannot_be_added_is_one_line_and_adds_nothing(arguments, message: str) -> None:
    model = ours_and_lora(tiny_gpt2())[0]
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(*arguments)
    assert set(model.peft_config) == {"first", "second"} and torch.isfinite(logits(model)).all()
