"""A short text that tells base weights apart, whatever dtype they are loaded in and whatever adapter wraps them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import unwrapped

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
    structure, weights = hashlib.sha256(), []
    for name, parameter in _base_parameters(unwrapped(model)):
        if parameter.is_meta or not parameter.is_floating_point() or type(parameter) is not nn.Parameter:
            return None
        structure.update(f"{name} {tuple(parameter.shape)};".encode())
        if parameter.ndim == 2 and parameter.numel():
            weights.append(parameter)
    if not weights:
        return None
    count = max(_SAMPLES // _PER_TENSOR, 1)
    chosen = [weights[(index * len(weights)) // count] for index in range(count)]
    values = torch.cat([_sample(weight, index) for index, weight in enumerate(chosen)])
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


def _sample(weight: Tensor, index: int) -> Tensor:
    """A few elements of one tensor, other ones for every index, as float32 on the CPU."""
    places = [(7919 * (index * _PER_TENSOR + k) + 13) % weight.numel() for k in range(_PER_TENSOR)]
    flat = weight.detach().reshape(-1) if weight.is_contiguous() else weight.detach().flatten()
    return flat[torch.tensor(places, device=weight.device)].float().cpu()


def _decoded(samples: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(samples)), dtype=torch.float32)
