"""A model in the dtype in which it will be served, for a moment, and without a second copy of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .decoder import unwrapped

SERVE_DTYPES = ("bfloat16", "float16", "float32")
"""The dtypes in which a model can be asked."""


def require_serve_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of that name, None for None.

    Raises:
        ValueError: It is not one of `SERVE_DTYPES`.
    """
    if name is None:
        return None
    if name not in SERVE_DTYPES:
        raise ValueError(f"serve_dtype: {name!r} is not one of {', '.join(SERVE_DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


@contextmanager
def served_as(model: Any, dtype: torch.dtype | None, *, beside: str | None = None) -> Iterator[None]:
    """The model's weights rounded to ``dtype``, as if it had been loaded in it; afterwards as before, bit for bit.

    Each weight is rounded in its place. One that comes back from the rounding unchanged, as all of a checkpoint do that
    was stored in this dtype, is not kept meanwhile, so that the memory falls; of the others the original is. Buffers,
    quantized and offloaded weights, and what the model's class keeps in float32 stay as they are.

    Args:
        model: A causal language model, or a PEFT model of one.
        dtype: The dtype; None leaves the model as it is.
        beside: Weights with this in their name stay as they are: those of an adapter, which has a dtype of its own.
    """
    inner = unwrapped(model)
    kept: list[tuple[nn.Parameter, torch.dtype, Tensor | None]] = []
    try:
        if dtype is not None:
            kept.extend(_rounded(inner, dtype, beside))
        yield
    finally:
        for parameter, own, original in kept:
            parameter.data = parameter.data.to(own) if original is None else original


def _rounded(
    model: nn.Module, dtype: torch.dtype, beside: str | None
) -> Iterable[tuple[nn.Parameter, torch.dtype, Tensor | None]]:
    wide = [*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())]
    if dtype == torch.float16:
        wide += getattr(model, "_keep_in_fp32_modules", None) or ()
    for name, parameter in model.named_parameters():
        own = parameter.dtype
        if not own.is_floating_point or own.itemsize < 2 or own == dtype or parameter.device.type == "meta":
            continue
        if (beside is not None and beside in name) or any(part in name.split(".") for part in wide):
            continue
        original = parameter.data
        low = original.to(dtype)
        comes_back = bool(torch.equal(low.to(own), original))
        parameter.data = low
        yield parameter, own, None if comes_back else original
