"""Remember a base layer exactly, so that unmerging gives it back bit for bit."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class BaseLayerSnapshot:
    """The state of one base layer before anything was merged into it.

    Adding an update and subtracting it again rounds twice, and requantizing a dequantized weight need not give the
    same codes. The snapshot holds references, not copies: merging writes new tensors and leaves the old ones alone,
    so it costs the memory of the layer's weight for as long as the layer is merged.

    Quantization libraries keep what belongs to a weight in attributes of the parameter and of the layer; those are
    remembered as well, without knowing any library.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._attributes = {name: copy.copy(value) for name, value in vars(layer).items() if _belongs_to_weight(name)}
        self._tensors: list[tuple[nn.Parameter, Tensor, dict[str, Any]]] = [
            (parameter, parameter.data, dict(vars(parameter))) for parameter in layer.parameters(recurse=False)
        ]

    def restore(self, layer: nn.Module) -> None:
        """Give ``layer`` the remembered state back."""
        for parameter, data, attributes in self._tensors:
            parameter.data = _as_moved(data, parameter)
            vars(parameter).clear()
            vars(parameter).update(attributes)
        for name, value in self._attributes.items():
            # copied once more, so that this snapshot can be restored again after the layer has changed its attribute
            object.__setattr__(layer, name, copy.copy(value))


def _as_moved(data: Tensor, parameter: Tensor) -> Tensor:
    """``data`` on the device and in the floating dtype that ``parameter`` was given meanwhile."""
    if data.is_meta or parameter.is_meta or not (data.is_floating_point() and parameter.is_floating_point()):
        return data
    return data.to(device=parameter.device, dtype=parameter.dtype)


def _belongs_to_weight(name: str) -> bool:
    if name.startswith("_"):
        return name in ("_parameters", "_buffers")
    return name not in ("training", "forward")
