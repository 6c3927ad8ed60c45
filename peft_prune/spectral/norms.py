"""The largest singular value of a weight, by a Lanczos iteration."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import require_finite, require_matrix
from .lanczos import largest_eigenvalue


class CountedNorm(NamedTuple):
    """A largest singular value and the number of products with W or Wᵀ that it took."""

    value: float
    products: int


def sigma_max(weight: Tensor, *, tolerance: float = 1e-5) -> float:
    """Largest singular value of ``weight``, (out, in), to the relative error ``tolerance``.

    Lanczos with full reorthogonalization on W Wᵀ (the smaller side), from a fixed start. Each step costs one product
    with W and one with Wᵀ, on vectors; the iteration stops when the residual ‖W Wᵀu − s²u‖ ≤ tolerance · s², which
    bounds the relative error of s by tolerance / 2. Typical counts at 1e-5: 20 to 60 products for trained weights,
    about 200 for a random Gaussian matrix of 4096 x 14336, at most 2 min(out, in). `counted_sigma_max` returns the
    count. Products run in float32 (float64 for float64 weights and for tolerances below 2e-6).

    Raises:
        ValueError: ``weight`` is not a matrix or holds NaN or Inf; ``tolerance`` is not in [1e-12, 0.1].
    """
    return counted_sigma_max(weight, tolerance=tolerance).value


@torch.no_grad()
def counted_sigma_max(weight: Tensor, *, tolerance: float = 1e-5) -> CountedNorm:
    """As `sigma_max`, with the number of products with W or Wᵀ."""
    require_matrix("weight", weight)
    require_finite("weight", weight)
    if not 1e-12 <= tolerance <= 0.1:
        raise ValueError(f"tolerance: {tolerance} must be between 1e-12 and 0.1")
    if weight.numel() == 0:
        return CountedNorm(0.0, 0)
    largest = float(weight.abs().amax())
    if largest == 0.0:
        return CountedNorm(0.0, 0)
    narrow = weight.dtype != torch.float64 and tolerance >= 2e-6
    working = weight.detach().to(torch.float32 if narrow else torch.float64)
    matrix = working if working.shape[0] <= working.shape[1] else working.T

    def apply(x: Tensor) -> Tensor:
        # Dividing by the largest element on both sides keeps the squares inside float32's range.
        inner = matrix.T @ x.to(matrix.dtype) / largest
        return (matrix @ inner / largest).double()

    result = largest_eigenvalue(apply, matrix.shape[0], matrix.device, tolerance)
    return CountedNorm(result.value**0.5 * largest, 2 * result.steps)
