"""The fingerprint of version 0.1.0, a hash of names and shapes and 64 weights: compared, and no longer written."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import AdapterError

_SAMPLES = 64
_PER_TENSOR = 4
_TOLERANCE = 2.0**-7


def sampled_fingerprint(model: nn.Module) -> str | None:
    """``"structure:samples"``, or None where weights are quantized or not at hand."""
    parameters = dict(_base_parameters(model))
    for parameter in parameters.values():
        if parameter.is_meta or not parameter.is_floating_point() or type(parameter) is not nn.Parameter:
            return None
    structure = hashlib.sha256()
    for name, parameter in parameters.items():
        structure.update(f"{name} {tuple(parameter.shape)};".encode())
    weights = [parameter.detach() for parameter in parameters.values() if parameter.ndim == 2 and parameter.numel()]
    if not weights:
        return None
    count = _SAMPLES // _PER_TENSOR
    chosen = [weights[(index * len(weights)) // count] for index in range(count)]
    values = torch.tensor([float(value) for index, weight in enumerate(chosen) for value in _samples(weight, index)])
    samples = base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()
    return f"{structure.hexdigest()[:16]}:{samples}"


def same_samples(one: str, other: str) -> bool:
    """Whether two such fingerprints are of the same weights, up to the rounding of a half-precision dtype.

    Raises:
        AdapterError: One of them is malformed.
    """
    structure, _, samples = one.partition(":")
    other_structure, _, other_samples = other.partition(":")
    if structure != other_structure:
        return False
    first, second = _decoded(samples), _decoded(other_samples)
    return len(first) == len(second) and bool(torch.allclose(first, second, rtol=_TOLERANCE, atol=1e-7))


def _base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of the base by their name in it; a tuner layer keeps its base layer as ``base_layer``."""
    wrappers = {name for name, module in model.named_modules() if hasattr(module, "base_layer")}
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            continue
        name = name.replace(".original_module.", ".")
        inside = next((w for w in wrappers if name.startswith(w + ".")), None)
        if inside is None:
            yield name, parameter
        elif name.startswith(inside + ".base_layer."):
            yield inside + name[len(inside) + len(".base_layer") :], parameter


def _samples(weight: Tensor, index: int) -> Iterator[Tensor]:
    """A few elements of one matrix, at other places for every index."""
    for k in range(_PER_TENSOR):
        place = (7919 * (index * _PER_TENSOR + k) + 13) % weight.numel()
        yield weight[place // weight.shape[1], place % weight.shape[1]]


def _decoded(samples: str) -> Tensor:
    try:
        return torch.frombuffer(bytearray(base64.b64decode(samples, validate=True)), dtype=torch.float32)
    except ValueError:
        raise AdapterError(f"base_fingerprint: {samples[:40]!r}... is malformed") from None
