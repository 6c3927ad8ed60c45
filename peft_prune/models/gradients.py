"""Right gradients through quantized linear maps, whose kernels have wrong ones or none.

Two kinds are known. bitsandbytes' 4-bit kernel for the CPU has no autograd: what comes before such a layer gets its
gradient by the residual alone. Layers that round their inputs as well (torchao's dynamic activations,
compressed-tensors with input activations) cut it off at the rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from .mlp import features
from .packing import asks_for_gradient, guard
from .quantization import dequantized, form_of, scheme_of

_SEEN = "_peft_prune_gradients"
_CLOSE = 0.05
"""Largest share of Wᵀg by which a gradient may be off; int8 kernels that round the gradient stay below 0.02."""


def ensure_gradients(model: nn.Module) -> None:
    """See to it that every quantized linear map of a model hands gradients on as Wᵀg; outputs stay as they are.

    A layer of each kind is tried, and those of a kind that fails get a hook that acts when a gradient is asked for.
    """
    kinds: dict[Any, bool] = {}
    for module in list(model.modules()):
        if hasattr(module, _SEEN) or hasattr(module, "base_layer") or features(module) is None:
            continue
        weight = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit":
            guard(module)
        elif form_of(module) is None:
            continue
        else:
            kind = _kind(module)
            if kind not in kinds:
                kinds[kind] = _has_right_gradient(module)
            if not kinds[kind]:
                module.register_forward_hook(_with_gradient, with_kwargs=True)
        setattr(module, _SEEN, True)


def _kind(module: nn.Module) -> Any:
    weight = getattr(module, "weight", None)
    rounds_inputs = getattr(weight, "act_quant_kwargs", None) is not None
    scheme = scheme_of(module)
    rounds_inputs |= scheme is not None and scheme.input_activations is not None
    return type(module), type(weight), rounds_inputs, scheme is not None


def _has_right_gradient(module: nn.Module) -> bool:
    scheme = scheme_of(module)
    if scheme is not None:
        return scheme.input_activations is None  # before its first forward pass it cannot be tried
    with align_module_device(module), torch.enable_grad():
        weight = dequantized(module)
        if weight is None or weight.is_meta:
            return True  # nothing to compare with
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(4, weight.shape[1], generator=generator).to(weight.device, weight.dtype).requires_grad_()
        along = torch.randn(4, weight.shape[0], generator=generator).to(weight.device, weight.dtype)
        try:
            output = module(rows)
        except Exception:  # a layer that cannot compute here says so where it is asked to
            return True
        if not output.requires_grad:
            return False
        (found,) = torch.autograd.grad(output, rows, along.to(output.dtype), allow_unused=True)
        wanted = along.double() @ weight.double()
        return found is not None and bool((found.double() - wanted).norm() <= _CLOSE * wanted.norm())


def _with_gradient(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
    x = asks_for_gradient(args, kwargs)
    return None if x is None else _Through.apply(x, output.detach(), module)


class _Through(torch.autograd.Function):
    """A layer's own output, with the gradient of the linear map that it stands for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, module: nn.Module) -> Tensor:
        ctx.module, ctx.dtype = module, x.dtype
        return output.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        with align_module_device(ctx.module):
            weight = dequantized(ctx.module)
            assert weight is not None
            return (gradient @ weight.to(gradient.device, gradient.dtype)).to(ctx.dtype), None, None
