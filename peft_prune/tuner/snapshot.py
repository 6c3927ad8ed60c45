"""Remember a base layer exactly, so that unmerging gives it back bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..models.sharding import gathered, is_sharded, shard_of, whole
from .state import sum_of_bits


class BaseLayerSnapshot:
    """The state of one base layer before anything was merged into it.

    Adding an update and subtracting it again rounds twice, and requantizing a dequantized weight need not give the
    same codes. The snapshot holds references, not copies: merging writes new tensors and leaves the old ones alone,
    so it costs the memory of the layer's weight for as long as the layer is merged. Of a weight that FSDP2 shards it
    copies the process's own part, since that is written in place.

    Quantization libraries keep what belongs to a weight in attributes of the parameter and of the layer; those are
    remembered as well, without knowing any library.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._attributes = {name: _kept(value) for name, value in vars(layer).items() if _belongs_to_weight(name)}
        # a tensor of a library's own class is replaced when it is written, never changed; the layer's dictionary of
        # parameters, which is remembered above, leads back to it
        self._tensors: list[tuple[nn.Parameter, Tensor, dict[str, Any]]] = [
            (parameter, parameter.data, dict(vars(parameter)))
            for parameter in layer.parameters(recurse=False)
            if not _is_composed(parameter)
        ]
        self._shards = {
            name: (parameter, shard_of(parameter).clone())
            for name, parameter in layer.named_parameters(recurse=False)
            if is_sharded(parameter)
        }

    def sharded_weight(self) -> Tensor | None:
        """The remembered weight put together of its shards; None where FSDP2 does not shard it."""
        return gathered(*self._shards["weight"]) if "weight" in self._shards else None

    def restore(self, layer: nn.Module) -> None:
        """Give ``layer`` the remembered state back."""
        for parameter, data, attributes in self._tensors:
            parameter.data = _as_moved(data, parameter)
            vars(parameter).clear()
            vars(parameter).update(attributes)
        for name, value in self._attributes.items():
            # copied once more, so that this snapshot can be restored again after the layer has changed its attribute
            object.__setattr__(layer, name, _kept(value))
        for parameter, own in self._shards.values():
            shard_of(parameter).copy_(own)


def bits_of(layer: nn.Module) -> tuple[torch.dtype, int] | None:
    """Dtype and sum of the bits of a layer's weight, by which any change is noticed; None where it is not at hand."""
    tensors = [
        part
        for name, parameter in layer.named_parameters(recurse=False)
        if name != "bias"
        for part in _parts(parameter)
    ]
    if not tensors or any(tensor.is_meta for tensor in tensors):
        return None
    return tensors[0].dtype, sum(sum_of_bits(tensor) for tensor in tensors)


def _is_composed(tensor: Tensor) -> bool:
    """Whether a tensor is one of a library's own class that holds others, such as codes and scales."""
    return hasattr(tensor, "__tensor_flatten__")


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    if is_sharded(tensor):
        yield whole(tensor)  # what one process sees of it is no ground for a decision of all
        return
    if not _is_composed(tensor):
        yield tensor.data
        return
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    for name in names:
        yield from _parts(getattr(tensor, name))


def _as_moved(data: Tensor, parameter: Tensor) -> Tensor:
    """``data`` on the device and in the floating dtype that ``parameter`` was given meanwhile."""
    if data.is_meta or parameter.is_meta or not (data.is_floating_point() and parameter.is_floating_point()):
        return data
    return data.to(device=parameter.device, dtype=parameter.dtype)


def _kept(value: Any) -> Any:
    # methods that a library has put on the layer are no state, and some cannot be copied
    return value if callable(value) else copy.copy(value)


def _belongs_to_weight(name: str) -> bool:
    if name.startswith("_"):
        return name in ("_parameters", "_buffers")
    return name not in ("training", "forward")
