"""A short text that tells base weights apart, whatever dtype they are loaded in and whatever adapter wraps them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .decoder import unwrapped

_SAMPLES = 64
_PER_TENSOR = 4
_TOLERANCE = 2.0**-7


def base_fingerprint(model: Any) -> str | None:
    """Fingerprint of a model's base weights: a hash of its tensors' names and shapes, and 64 sampled weights.

    It is the same for a plain model and for that model wrapped by PEFT, with an adapter that is not merged. Samples are
    spread over all floating weights of two dimensions; reading them costs nothing for a large model.

    Returns:
        ``"structure:samples"``, or None where weights are quantized or not at hand (offloaded, on the meta device).
    """
    parameters = dict(_base_parameters(unwrapped(model)))
    for parameter in parameters.values():
        if parameter.is_meta or not parameter.is_floating_point() or type(parameter) is not nn.Parameter:
            return None
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    return fingerprint_of(shapes, partial(_element, parameters))


def fingerprint_of(shapes: Mapping[str, tuple[int, ...]], read: Callable[[str, int], float]) -> str | None:
    """The fingerprint of weights that need not be in memory.

    Args:
        shapes: Shape of every parameter by name, in the model's order, tied ones once.
        read: The element of a parameter of two dimensions at a place counted row by row.

    Returns:
        As `base_fingerprint`; None where no parameter has two dimensions.
    """
    structure, sizes = hashlib.sha256(), dict[str, int]()
    for name, shape in shapes.items():
        structure.update(f"{name} {shape};".encode())
        if len(shape) == 2 and shape[0] * shape[1]:
            sizes[name] = shape[0] * shape[1]
    weights = list(sizes)
    if not weights:
        return None
    count = max(_SAMPLES // _PER_TENSOR, 1)
    chosen = [weights[(index * len(weights)) // count] for index in range(count)]
    values = torch.tensor(
        [read(name, place) for index, name in enumerate(chosen) for place in _places(sizes[name], index)]
    )
    samples = base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()
    return f"{structure.hexdigest()[:16]}:{samples}"


def same_base(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same weights, up to the rounding of a half-precision dtype."""
    structure, _, samples = one.partition(":")
    other_structure, _, other_samples = other.partition(":")
    if structure != other_structure:
        return False
    first, second = _decoded(samples), _decoded(other_samples)
    return len(first) == len(second) and bool(torch.allclose(first, second, rtol=_TOLERANCE, atol=1e-7))


def short_form(fingerprint: str) -> str:
    """Eight characters of a fingerprint, for messages."""
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:8]


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


def _places(count: int, index: int) -> list[int]:
    """Places of a few elements of one tensor, other ones for every index."""
    return [(7919 * (index * _PER_TENSOR + k) + 13) % count for k in range(_PER_TENSOR)]


def _element(parameters: Mapping[str, Tensor], name: str, place: int) -> float:
    weight = parameters[name].detach()
    return float(weight[place // weight.shape[1], place % weight.shape[1]])


def _decoded(samples: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(samples)), dtype=torch.float32)
