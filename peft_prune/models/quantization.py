"""Weights in the formats of quantization libraries, as the numbers that a layer computes with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers.integrations.bitsandbytes import dequantize_bnb_weight
from transformers.pytorch_utils import Conv1D

from .packing import is_packed_for_cpu, unpacked

ERRORS = {"int8": 0.03, "nf4": 0.125, "fp4": 0.2}
"""‖W_q − W‖_F / ‖W‖_F that a format explains: bitsandbytes' 8 bits a row, and its 4 bits in blocks of 64."""

OTHER_ERROR = 0.25
"""The same for formats of other libraries, down to 3 bits."""

COMPRESSED = "compressed-tensors"

_BITSANDBYTES = ("Int8Params", "Params4bit")
_ORDINARY = ("Parameter", "DTensor", *_BITSANDBYTES)  # bitsandbytes' are ordinary until their first move


def form_of(module: nn.Module) -> str | None:
    """Name of the format in which a linear module holds its weight; None for an ordinary weight, or for none."""
    if scheme_of(module) is not None:
        return COMPRESSED
    weight: Any = getattr(module, "weight", None)  # of a library's own class, with a state
    if not isinstance(weight, Tensor):
        return type(module).__name__.lower() if callable(getattr(module, "dequantize", None)) else None
    kind = type(weight).__name__
    if kind in _ORDINARY and weight.is_floating_point() and weight.element_size() > 1:
        return None
    if kind in _BITSANDBYTES:
        return "int8" if kind == "Int8Params" else str(getattr(weight, "quant_state").quant_type)  # noqa: B009
    return (type(module).__name__ if kind == "Parameter" else kind).lower()


def scheme_of(module: nn.Module) -> Any:
    """What compressed-tensors does to the weight of a module; None where it does nothing."""
    scheme = getattr(module, "quantization_scheme", None)
    return scheme if getattr(scheme, "weights", None) is not None else None


def error_of(form: str) -> float:
    """‖W_q − W‖_F / ‖W‖_F that a format explains."""
    return ERRORS.get(form, OTHER_ERROR)


def is_plain(module: nn.Module) -> bool:
    """Whether a module computes x Wᵀ + b (x W + b for Conv1D) of an ordinary weight W, in and out.

    A class that is not known to is tried on two random rows.
    """
    weight = getattr(module, "weight", None)
    if form_of(module) is not None or not isinstance(weight, nn.Parameter) or weight.dim() != 2:
        return False
    replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook")
    if type(module).forward in (nn.Linear.forward, Conv1D.forward) and not replaced:
        return True
    with align_module_device(module), torch.no_grad():
        return _computes_its_weight(module)


def _computes_its_weight(module: Any) -> bool:
    weight, bias = module.weight, getattr(module, "bias", None)
    if weight.is_meta or not weight.is_floating_point():
        return False
    rows = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    wanted = rows.double() @ weight.double().T + (0 if bias is None else bias.double())
    try:
        found = module(rows).double()
    except Exception:  # whatever a class raises that wants something else
        return False
    close = 1e-4 if weight.element_size() >= 4 else 3e-2
    return found.shape == wanted.shape and bool((found - wanted).norm() <= close * wanted.norm())


def dequantized(module: nn.Module) -> Tensor | None:
    """The weight of a quantized linear module, (out, in); None where its library offers no way back."""
    if scheme_of(module) is not None:
        return _decompressed(module)
    weight = getattr(module, "weight", None)
    if type(weight).__name__ in _BITSANDBYTES:
        source: Any = unpacked(module) if is_packed_for_cpu(module) else module
        state = getattr(source, "state", None)
        if state is not None and state.SCB is None:
            state.SCB = getattr(source.weight, "SCB", None)
        return dequantize_bnb_weight(source.weight, state=state)
    if isinstance(weight, Tensor) and type(weight) is not nn.Parameter:
        return weight.dequantize()
    dequantize = getattr(module, "dequantize", None)
    return dequantize() if callable(dequantize) else None


def _decompressed(module: nn.Module) -> Tensor:
    """The weight that compressed-tensors computes with: the stored codes times scales, or an open weight rounded."""
    from compressed_tensors.compressors import decompress_module
    from compressed_tensors.quantization import QuantizationStatus
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    found: Any = module
    if found.quantization_status == QuantizationStatus.COMPRESSED:
        found = copy.deepcopy(module)
        decompress_module(found)
        return found.weight.detach()
    return forward_quantize(found, found.weight.detach(), "weight", found.quantization_scheme.weights)
