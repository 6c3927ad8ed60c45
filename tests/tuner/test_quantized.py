"""bitsandbytes 8-bit and 4-bit bases, on whatever device there is."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.models.fingerprint import base_fingerprint, same_base
from tests.tiny import agree, tiny_llama
from tests.tuner.test_edits import INPUTS, dense_log

bnb = pytest.importorskip("bitsandbytes")
WIDTH = 64


def quantized(bits: int, **settings: bool):
    """A tiny Llama whose MLP projections are quantized, as transformers' bitsandbytes integration does it."""
    model = tiny_llama(width=WIDTH)
    for block in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(block.mlp, name, _quantize(getattr(block.mlp, name), bits, **settings))
    return model.eval()


def _quantize(linear: torch.nn.Linear, bits: int, **settings: bool) -> torch.nn.Module:
    arguments = (linear.in_features, linear.out_features, False)
    if bits == 8:
        layer = bnb.nn.Linear8bitLt(*arguments, has_fp16_weights=False, threshold=6.0)
        layer.weight = bnb.nn.Int8Params(linear.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(*arguments, compute_dtype=torch.float32, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(linear.weight.data.clone(), requires_grad=False, quant_type="nf4", **settings)
    return layer.to(linear.weight.device)


def dequantized(layer) -> torch.Tensor:
    with layer.base_weight() as weight:
        return weight.clone().float()


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
def test_edits_restraint_saving_and_merging_work_on_a_quantized_base(tmp_path, bits: int) -> None:
    base = quantized(bits)
    untouched = copy.deepcopy(base)
    before = base(INPUTS).logits
    model = get_peft_model(base, PruneEditConfig(layers_to_transform=[1], restrain_every=3)).eval()
    assert torch.equal(model(INPUTS).logits, before)
    ((name, layer),) = model.edited_layers()
    weight = dequantized(layer)
    updates = []
    for seed in range(3):
        update = strong_relative_to(weight, layer, seed)
        updates.append(update)
        model.add_edits({name: update})
    raw = sum(u.dense().double() for u in updates)
    expected = dense_log(raw, weight, 1.2)
    assert torch.allclose(layer.effective_update("default").dense().double(), expected, atol=1e-4 * float(raw.norm()))

    unmerged = model(INPUTS).logits
    assert not torch.allclose(unmerged, before, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(model(INPUTS).logits, before)

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(untouched, tmp_path)
    assert agree(loaded(INPUTS).logits, unmerged)
    # collecting a state dict rounds the scales of every 4-bit layer that bitsandbytes has packed for the CPU
    unmerged = model(INPUTS).logits
    with model.disable_adapter():
        before = model(INPUTS).logits

    model.merge_adapter(safe_merge=True, requantize=True)
    # requantizing W0 + ΔW rounds to the quantizer's own grid, whose step follows the largest entry
    step = float((weight.double() + expected).abs().amax()) * (1 / 127 if bits == 8 else 0.16)
    assert (dequantized_merged(layer).double() - (weight.double() + expected)).abs().max() <= step
    model.unmerge_adapter()
    assert torch.equal(model(INPUTS).logits, unmerged)
    with model.disable_adapter():
        assert torch.equal(model(INPUTS).logits, before)
    merged = model.merge_and_unload(safe_merge=True, requantize=True)
    assert torch.isfinite(merged(INPUTS).logits).all()


def dequantized_merged(layer) -> torch.Tensor:
    return layer.get_base_weight().float()


def strong_relative_to(weight: torch.Tensor, layer, seed: int):
    from tests.tiny import random_update

    update = random_update((layer.out_features, layer.in_features), seed=seed)
    size = float(torch.linalg.matrix_norm(weight, 2))
    return update.scaled(3 * size / float(torch.linalg.matrix_norm(update.dense(), 2)))


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
def test_unmerging_a_quantized_layer_gives_its_codes_back(bits: int) -> None:
    model = get_peft_model(quantized(bits), PruneEditConfig(layers_to_transform=[1], restraint="none")).eval()
    model(INPUTS)
    ((name, layer),) = model.edited_layers()
    codes = layer.get_base_layer().weight.data.clone()
    model.add_edits({name: strong_relative_to(dequantized(layer), layer, 0)})
    for _ in range(2):
        model.merge_adapter(requantize=True)
        assert not torch.equal(layer.get_base_layer().weight.data, codes)
        model.unmerge_adapter()
        assert torch.equal(layer.get_base_layer().weight.data, codes)
    # a later move must not quantize the codes a second time
    model.to("cpu")
    assert torch.equal(layer.get_base_layer().weight.data, codes)


@torch.no_grad()
@pytest.mark.parametrize("nested", [False, True])
def test_the_weight_of_a_four_bit_layer_reads_the_same_before_and_after_inference(nested: bool) -> None:
    """On processors where bitsandbytes rearranges the codes at the first inference."""
    model = quantized(4, compress_statistics=nested)
    model = get_peft_model(model, PruneEditConfig(layers_to_transform=[1])).eval()
    ((_, layer),) = model.edited_layers()
    before = dequantized(layer)
    model(INPUTS)
    # the scales may have been rounded to bfloat16
    assert torch.allclose(dequantized(layer), before, rtol=1e-2, atol=0)


@torch.no_grad()
@pytest.mark.parametrize(("bits", "form"), [(8, "int8"), (4, "nf4")])
def test_a_quantized_base_has_a_fingerprint_that_its_format_explains(tmp_path, bits: int, form: str) -> None:
    plain, found = base_fingerprint(tiny_llama(width=WIDTH)), base_fingerprint(quantized(bits))
    assert f",{form}~" in found
    assert same_base(found, base_fingerprint(quantized(bits))) and same_base(found, plain)
    other = tiny_llama(width=WIDTH, seed=1)
    assert not same_base(found, base_fingerprint(other))
    model = get_peft_model(quantized(bits), PruneEditConfig(layers_to_transform=[1])).eval()
    assert same_base(base_fingerprint(model), found)
    model(INPUTS)  # where bitsandbytes may pack the codes anew
    assert same_base(base_fingerprint(model), found)
    ((name, layer),) = model.edited_layers()
    model.add_edits({name: strong_relative_to(dequantized(layer), layer, 0)})
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(tiny_llama(width=WIDTH), tmp_path, strict_base=True)
    model.merge_adapter(requantize=True)
    assert same_base(base_fingerprint(model), found)
    merged = base_fingerprint(model.merge_and_unload(requantize=True))
    assert not same_base(merged, found) and not same_base(merged, plain)
