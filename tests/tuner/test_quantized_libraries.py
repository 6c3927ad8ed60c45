"""Bases of every quantization library: edited, saved, reloaded, merged; or refused before any work."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from peft_prune import PruneEditConfig, UnsupportedModelError
from peft_prune.editors.shortcuts import require_partial_passes
from peft_prune.errors import MergeError
from peft_prune.models.packing import is_packed_for_cpu
from peft_prune.models.quantization import dequantized
from peft_prune.spectral import LowRankUpdate
from peft_prune.tuner.realised import MIN_SHARE
from tests.tuner.quantized_cases import CANNOT_REQUANTIZE, CASES, ROUNDS_INPUTS, bitsandbytes, tiny

INPUTS = torch.arange(16).reshape(2, 8)
CONFIG = {"layers_to_transform": [1], "restraint": "none", "target_modules": ["down_proj"]}
every_library = pytest.mark.parametrize("case", CASES)


def attached(base):
    model = get_peft_model(base, PruneEditConfig(**CONFIG)).eval()
    ((name, layer),) = model.edited_layers()
    return model, name, layer


def update(seed: int = 1, size: float = 2.0) -> LowRankUpdate:
    """Of a few percent of the base weight's norm in every direction, or more."""
    generator = torch.Generator().manual_seed(seed)
    return LowRankUpdate(
        B=size * torch.randn(64, 2, generator=generator) / 8, A=torch.randn(2, 128, generator=generator) / 11
    )


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def matching(model) -> nn.Module:
    """The same model with ordinary maps of the dequantized weights."""
    plain = tiny()
    modules = dict(model.named_modules())
    for name, own in plain.named_modules():
        if isinstance(own, nn.Linear) and name != "lm_head":
            with torch.no_grad():
                own.weight.data = dequantized(modules[name]).float().clone()
    return plain


@every_library
def test_a_quantized_base_is_edited_saved_reloaded_and_dequantized_by_merging(tmp_path, case: str) -> None:
    base = CASES[case](tiny())
    with torch.no_grad():
        before = base(INPUTS).logits
    model, name, layer = attached(base)
    with torch.no_grad():
        assert torch.equal(model(INPUTS).logits, before)
    with layer.base_weight() as weight:
        weight = weight.detach().double().clone()
    model.add_edits({name: update()})
    changed = weight + update().dense().double()
    values = torch.linalg.svdvals(changed)
    assert layer.figures("default").condition.condition_number == pytest.approx(float(values[0] / values[-1]), rel=1e-3)
    with torch.no_grad():
        unmerged = model(INPUTS).logits
        with model.disable_adapter():
            assert torch.equal(model(INPUTS).logits, before)
    assert off(unmerged, before) > 0.01
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(CASES[case](tiny()), tmp_path / "adapter", strict_base=True).eval()
    with torch.no_grad():
        assert off(again(INPUTS).logits, unmerged) < (0.01 if case in ROUNDS_INPUTS else 1e-5)
        # collecting the adapter's state has left the base alone
        assert torch.equal(model(INPUTS).logits, unmerged)
    merged = model.merge_and_unload()
    linear = merged.model.layers[1].mlp.down_proj
    close = 3e-3 if "p4" in case or "f4" in case else 1e-6  # packing rounds the scales to bfloat16
    assert type(linear) is nn.Linear and off(linear.weight, changed) < close
    assert not any(hasattr(parameter, "__tensor_flatten__") for parameter in merged.parameters())
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        # kernels that round inputs, or compute in bfloat16, differ from the plain product
        assert off(plain(INPUTS).logits, unmerged) < 0.1


@every_library
def test_quantizing_anew_is_asked_for_by_name_and_measured(case: str) -> None:
    model, name, layer = attached(CASES[case](tiny()))
    model.add_edits({name: update(size=8)})
    with torch.no_grad():
        unmerged = model(INPUTS).logits
    with layer.base_weight() as weight:
        weight = weight.detach().double().clone()
    with pytest.raises(MergeError, match="quantized"):
        model.merge_adapter()
    assert not layer.merged
    if case in CANNOT_REQUANTIZE:
        with pytest.raises(MergeError, match="cannot quantize"):
            model.merge_adapter(requantize=True)
        return
    model.merge_adapter(requantize=True)
    found = layer.get_base_weight().double() - weight
    delta = update(size=8).dense().double()
    assert layer.realised["default"].error == pytest.approx(off(found, delta), rel=1e-3)
    assert layer.realised["default"].share == pytest.approx(
        float((found * delta).sum() / delta.square().sum()), rel=1e-3
    )
    model.unmerge_adapter()
    assert torch.equal(layer.get_base_weight().double(), weight)
    with torch.no_grad():
        assert torch.equal(model(INPUTS).logits, unmerged)


@every_library
def test_gradients_are_those_of_the_dequantized_weights(case: str) -> None:
    """Also after inference, when bitsandbytes has packed its codes for a kernel without autograd."""
    base = CASES[case](tiny())
    plain = matching(base)
    model, _, _ = attached(base)
    with torch.no_grad():
        model(INPUTS)
    found, wanted = (gradient(one) for one in (model, plain))
    assert off(found, wanted) < (0.1 if case in ROUNDS_INPUTS else 1e-4 if "4" not in case else 0.02)


def gradient(model) -> torch.Tensor:
    inputs = model.get_input_embeddings()(INPUTS).detach().requires_grad_()
    model(inputs_embeds=inputs).logits.logsumexp(-1).sum().backward()
    return inputs.grad


@pytest.mark.parametrize("kind", ["nf4", "fp4", "nf4-double"])
def test_four_bit_gradients_agree_with_finite_differences(kind: str) -> None:
    model, _, _ = attached(bitsandbytes(tiny(), kind))
    with torch.no_grad():
        model(INPUTS)
    inputs = model.get_input_embeddings()(INPUTS).detach()
    direction = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()

    def loss(step: float) -> float:
        # a gradient is asked for, so that the same float32 product is taken
        moved = (inputs + step * direction).requires_grad_()
        return float(model(inputs_embeds=moved).logits.double().logsumexp(-1).sum().detach())

    along = float((gradient(model) * direction).sum())
    step = 1e-3
    assert along == pytest.approx((loss(step) - loss(-step)) / (2 * step), rel=2e-2)


def test_inference_after_a_gradient_is_what_it_was() -> None:
    model, _, layer = attached(bitsandbytes(tiny(), "nf4-double"))
    with torch.no_grad():
        before = model(INPUTS).logits
        packed = is_packed_for_cpu(layer.get_base_layer())
    gradient(model)
    with torch.no_grad():
        assert torch.equal(model(INPUTS).logits, before)
    assert is_packed_for_cpu(layer.get_base_layer()) == packed


@pytest.mark.parametrize("case", ["bitsandbytes-nf4", "bitsandbytes-int8"])
def test_a_requantization_that_would_lose_an_edit_is_undone(case: str) -> None:
    """Entries of ΔW below half a step of the grid are rounded away."""
    model, name, layer = attached(CASES[case](tiny()))
    model.add_edits({name: update(size=1e-3)})
    with torch.no_grad():
        unmerged, weight = model(INPUTS).logits, layer.get_base_weight().clone()
    for act in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match="share of 0"):
            act(requantize=True)
        assert not layer.merged and layer.realised["default"].share < MIN_SHARE
        assert torch.equal(layer.get_base_weight(), weight)
        with torch.no_grad():
            assert torch.equal(model(INPUTS).logits, unmerged)


def test_a_merge_that_half_precision_would_round_away_is_undone_in_every_layer() -> None:
    base = tiny().to(torch.bfloat16)
    model = get_peft_model(base, PruneEditConfig(restraint="none", target_modules=["down_proj"])).eval()
    layers = dict(model.edited_layers())
    weights = [layer.get_base_weight().clone() for layer in layers.values()]
    sizes = (8.0, 8.0, 1e-5)
    model.add_edits({name: update(size=size) for name, size in zip(layers, sizes, strict=True)})
    for act in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=r"layers\.2.*bfloat16"):
            act()
        for layer, weight in zip(layers.values(), weights, strict=True):
            assert not layer.merged and torch.equal(layer.get_base_weight(), weight)


class Rounded(nn.Linear):
    """A subclass of nn.Linear that computes with another weight than the one it holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, (self.weight * 4).round() / 4, self.bias)


class Renamed(nn.Linear):
    """A subclass that computes what nn.Linear does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


def with_class(kind: type[nn.Linear]):
    model = tiny()
    for block in model.model.layers:
        own = block.mlp.down_proj
        block.mlp.down_proj = kind(own.in_features, own.out_features)
        block.mlp.down_proj.load_state_dict(own.state_dict())
    return model.eval()


def test_a_layer_is_accepted_for_what_it_computes_not_for_its_base_class() -> None:
    model, name, _ = attached(with_class(Renamed))
    model.add_edits({name: update()})
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.down_proj.*Rounded cannot be edited.*LoRA"):
        get_peft_model(with_class(Rounded), PruneEditConfig(**CONFIG))


def test_a_base_that_is_refused_is_left_without_an_adapter() -> None:
    base = with_class(Rounded)
    kinds = [type(module) for module in base.modules()]
    with pytest.raises(UnsupportedModelError):
        get_peft_model(base, PruneEditConfig(**CONFIG))
    assert [type(module) for module in base.modules()] == kinds


def test_a_dequantizing_merge_that_fails_leaves_the_base_quantized() -> None:
    base = bitsandbytes(tiny().to(torch.bfloat16), "nf4")
    model, name, layer = attached(base)
    model.add_edits({name: update(size=1e-6)})
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(MergeError, match="bfloat16"):
        model.merge_and_unload()
    assert [type(module) for module in model.modules()] == kinds and layer.quantization_backend is not None


def test_adapters_on_copies_of_a_quantized_base_keep_their_gradients() -> None:
    model, _, _ = attached(bitsandbytes(tiny(), "nf4"))
    with torch.no_grad():
        model(INPUTS)
    assert off(gradient(copy.deepcopy(model)), gradient(model)) < 1e-6


def test_kernels_that_round_by_the_rows_beside_are_no_reason_to_refuse_a_model() -> None:
    """As bitsandbytes' int8 does on a real model, where columns with an outlier in any row are computed apart."""

    def by_rows(module, args, output):
        return output * (1 + 2e-3 * (args[0].shape[-2] % 5))

    for case, refused in (("plain", True), ("bitsandbytes-int8", False)):
        model = tiny() if case == "plain" else CASES[case](tiny())
        for layer in model.model.layers:
            layer.mlp.up_proj.register_forward_hook(by_rows)
        if refused:
            with pytest.raises(UnsupportedModelError, match="gives other logits without the layers before it"):
                require_partial_passes(model, 1)
        else:
            require_partial_passes(model, 1)
