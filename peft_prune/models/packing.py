"""bitsandbytes' 4-bit weights on a processor with AVX512-BF16, which it rearranges for a kernel of their own.

It does so in place at the first inference. From then on (bitsandbytes 0.50) its dequantization reads the codes in the
wrong order and gives other weights without an error, the forward pass has no gradient, and collecting a state dict puts
the codes back but leaves the scales transposed, so that the next inference computes with wrong weights.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

_BUSY = "_peft_prune_unpacking"


def is_packed_for_cpu(layer: nn.Module) -> bool:
    """Whether bitsandbytes has rearranged a 4-bit weight for its CPU kernel."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return getattr(state, "packing_format_for_cpu", False)


def unpacked(layer: nn.Module) -> nn.Module:
    """A copy of a layer packed for the CPU that dequantizes rightly; the layer stays packed, so its outputs stay."""
    found = copy.deepcopy(layer)
    unpack(found)
    return found


def unpack(layer: nn.Module) -> None:
    """Give a layer packed for the CPU its order back; the next inference packs it again, with the same outputs.

    The scales are those that the kernel uses, which packing has rounded to bfloat16.
    """
    weight: Any = layer.weight
    scales = weight.quant_state.absmax.T.reshape(-1).float()
    setattr(layer, _BUSY, True)
    try:
        layer.state_dict()  # the one public road back to the order that dequantization reads
    finally:
        delattr(layer, _BUSY)
    state = weight.quant_state
    # the way back quantizes nested scales anew, and leaves others transposed
    state.absmax, state.nested = scales, False


def guard(layer: nn.Module) -> None:
    """See to it that a 4-bit layer has gradients after inference, and keeps its weight when a state dict is taken."""
    weight: Any = layer.weight
    scales = getattr(getattr(weight, "quant_state", None), "absmax", None)
    if scales is not None and scales.dim() == 2 and not is_packed_for_cpu(layer):
        weight.quant_state.absmax = scales.T.reshape(-1).float()  # a state dict was taken before
    state = getattr(weight, "quant_state", None)
    if state is not None and (state.shape[0] % 32 or state.shape[1] % state.blocksize):
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment] # packing fails on such a shape
    layer.register_forward_pre_hook(_unpack_for_gradient, with_kwargs=True)
    layer.register_state_dict_pre_hook(_unpack_for_state_dict)


def asks_for_gradient(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The input of a forward pass that a gradient is wanted for; None where none is."""
    x = args[0] if args else next(iter(kwargs.values()), None)
    return x if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled() else None


def _unpack_for_gradient(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if is_packed_for_cpu(module) and asks_for_gradient(args, kwargs) is not None:
        unpack(module)


def _unpack_for_state_dict(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    if is_packed_for_cpu(module) and not hasattr(module, _BUSY):
        unpack(module)
