"""What PEFT's quantization backends leave open."""

from __future__ import annotations

from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn

from ..models.quantization import is_packed_for_cpu, unpacked

__all__ = ["is_packed_for_cpu", "packed_weight"]


def packed_weight(layer: nn.Module, backend: QuantizationBackend) -> Tensor:
    """The dequantized weight, (out, in), of a layer that bitsandbytes has packed for the CPU."""
    return backend.get_base_weight(unpacked(layer))
