"""Validation at the door of the spectral functions: shapes, dtypes and numbers, named in one line."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def require_matrix(name: str, value: Tensor) -> None:
    """Raise ValueError unless ``value`` is a two-dimensional tensor of a real floating dtype."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: must be a tensor, is {type(value).__name__}")
    if value.ndim != 2:
        raise ValueError(f"{name}: shape {tuple(value.shape)} must be two-dimensional")
    if not value.is_floating_point():
        raise ValueError(f"{name}: dtype {value.dtype} must be a floating dtype")


def require_finite(name: str, value: Tensor) -> None:
    """Raise ValueError unless every element of ``value`` is finite."""
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        count = value.numel() - int(finite.sum())
        raise ValueError(f"{name}: {count} of {value.numel()} elements are NaN or Inf, all must be finite")


def require_positive(name: str, value: float) -> float:
    """Return ``value`` as a float; raise ValueError unless it is finite and above zero."""
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}: {number} must be a finite number above 0")
    return number


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which results come back: float64 stays float64, everything narrower becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
