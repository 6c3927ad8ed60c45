"""What PEFT's quantization backends leave open."""

from __future__ import annotations

import copy
from typing import Any

from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn


def is_packed_for_cpu(layer: nn.Module) -> bool:
    """Whether bitsandbytes has rearranged a 4-bit weight for its CPU kernel.

    It does so in place at the first inference on a processor with AVX512-BF16. From then on its dequantization, which
    PEFT's backend calls, reads the codes in the wrong order and gives other weights without an error
    (bitsandbytes 0.50).
    """
    return getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False)


def packed_weight(layer: nn.Module, backend: QuantizationBackend) -> Tensor:
    """The dequantized weight, (out, in), of a layer packed for the CPU; the layer stays packed, so its outputs stay.

    The scales are those that the kernel uses, which packing has rounded to bfloat16.
    """
    unpacked: Any = copy.deepcopy(layer)  # its weight is one of bitsandbytes' own, with a state
    state = unpacked.weight.quant_state
    scales = state.absmax.T.reshape(-1).float()
    unpacked.state_dict()  # the one public road back to the order that dequantization reads
    state = unpacked.weight.quant_state
    # the way back quantizes nested scales anew, and leaves others transposed
    state.absmax, state.nested = scales, False
    return backend.get_base_weight(unpacked)
