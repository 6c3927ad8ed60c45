"""Weights in the formats of quantization libraries, as the numbers that a layer computes with."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

ERRORS = {"int8": 0.03, "nf4": 0.125, "fp4": 0.2}
"""‖W_q − W‖_F / ‖W‖_F that a format explains: bitsandbytes' 8 bits a row, and its 4 bits in blocks of 64."""

OTHER_ERROR = 0.25
"""The same for formats of other libraries, down to 3 bits."""

_BITSANDBYTES = ("Int8Params", "Params4bit")
_ORDINARY = ("Parameter", "DTensor", *_BITSANDBYTES)  # bitsandbytes' are ordinary until their first move


def form_of(module: nn.Module) -> str | None:
    """Name of the format in which a linear module holds its weight; None for an ordinary weight, or for none."""
    weight: Any = getattr(module, "weight", None)  # of a library's own class, with a state
    if not isinstance(weight, Tensor):
        return type(module).__name__.lower() if callable(getattr(module, "dequantize", None)) else None
    kind = type(weight).__name__
    if kind in _ORDINARY and weight.is_floating_point() and weight.element_size() > 1:
        return None
    if kind in _BITSANDBYTES:
        return "int8" if kind == "Int8Params" else str(getattr(weight, "quant_state").quant_type)  # noqa: B009
    return (type(module).__name__ if kind == "Parameter" else kind).lower()


def error_of(form: str) -> float:
    """‖W_q − W‖_F / ‖W‖_F that a format explains."""
    return ERRORS.get(form, OTHER_ERROR)


def dequantized(module: nn.Module) -> Tensor | None:
    """The weight of a quantized linear module, (out, in); None where its library offers no way back."""
    weight = getattr(module, "weight", None)
    if type(weight).__name__ in _BITSANDBYTES:
        source: Any = unpacked(module) if is_packed_for_cpu(module) else module
        return dequantize_bnb_weight(source.weight, state=getattr(source, "state", None))
    if isinstance(weight, Tensor) and type(weight) is not nn.Parameter:
        return weight.dequantize()
    dequantize = getattr(module, "dequantize", None)
    return dequantize() if callable(dequantize) else None


def is_packed_for_cpu(layer: nn.Module) -> bool:
    """Whether bitsandbytes has rearranged a 4-bit weight for its CPU kernel.

    It does so in place at the first inference on a processor with AVX512-BF16. From then on its dequantization reads
    the codes in the wrong order and gives other weights without an error (bitsandbytes 0.50).
    """
    return getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False)


def unpacked(layer: nn.Module) -> nn.Module:
    """A copy of a layer packed for the CPU that dequantizes rightly; the layer stays packed, so its outputs stay.

    The scales are those that the kernel uses, which packing has rounded to bfloat16.
    """
    found: Any = copy.deepcopy(layer)
    state = found.weight.quant_state
    scales = state.absmax.T.reshape(-1).float()
    found.state_dict()  # the one public road back to the order that dequantization reads
    state = found.weight.quant_state
    # the way back quantizes nested scales anew, and leaves others transposed
    state.absmax, state.nested = scales, False
    return found
