"""How large the singular values of rounding errors are, so that a change can be told from them."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

MOST_ROUNDINGS = 32.0
"""Times the error of one rounding that a spectrum's bulk may lie at and still be rounding: that of 1,000 edits."""

_SLACK = 1.25


class RoundingErrors:
    """The size of a matrix of independent rounding errors, whose variances differ from element to element.

    Its spectral norm is about the largest row norm plus the largest column norm of the standard deviations (Bandeira
    and van Handel 2016, corollary 3.9, without the logarithmic term).

    Args:
        width: Columns of the matrix.
    """

    def __init__(self, width: int) -> None:
        self._columns = torch.zeros(width, dtype=torch.float64)
        self._largest_row = 0.0

    def add(self, *rounded: Tensor) -> None:
        """Take the next rows, (rows, width), of everything whose rounding adds up in the matrix."""
        variances = sum((rounding_variances(values) for values in rounded), torch.zeros((), dtype=torch.float64))
        self._columns = self._columns.to(variances.device) + variances.sum(0)
        self._largest_row = max(self._largest_row, float(variances.sum(1).max()))

    @property
    def edge(self) -> float:
        """Estimate of the largest singular value of the errors."""
        return math.sqrt(self._largest_row) + math.sqrt(float(self._columns.max()))


def rounding_variances(values: Tensor) -> Tensor:
    """Variance of rounding every element to the tensor's dtype: a twelfth of the squared unit in its last place.

    Args:
        values: Of a floating dtype.

    Returns:
        float64, of the same shape; 0 for zeros, which are stored exactly.
    """
    limits = torch.finfo(values.dtype)
    _, exponent = torch.frexp(values.double())
    # frexp's mantissa lies in [0.5, 1), so a unit in the last place is eps times half of two to the exponent; below the
    # smallest normal number units no longer shrink
    unit = torch.ldexp(torch.full_like(exponent, limits.eps / 2, dtype=torch.float64), exponent)
    unit = unit.clamp(min=limits.smallest_normal * limits.eps)
    return torch.where(values == 0, 0.0, unit).square() / 12


def noise_edge(singular_values: Tensor, rounding: float, shape: tuple[int, int]) -> float:
    """Where the singular values of a change end and those of rounding begin.

    A matrix that was edited n times was rounded n times, so its errors are larger than those of one rounding. Where
    more than half of the values are errors, their median tells how large (Gavish and Donoho 2014, section III-E): the
    largest is the median times (1 + √β) / √μ_β, with μ_β the median of the Marchenko-Pastur law. Where that is more
    than `MOST_ROUNDINGS` times one rounding's, the bulk is a change itself, and one rounding counts.

    Args:
        singular_values: Of the change, (min(shape),), descending.
        rounding: Largest singular value of one rounding's errors, as `RoundingErrors.edge` estimates it.
        shape: Of the matrix.
    """
    beta = min(shape) / max(shape)
    median = float(singular_values.median())
    bulk = _SLACK * median * (1 + math.sqrt(beta)) / math.sqrt(_marchenko_pastur_median(beta))
    return max(rounding, bulk) if bulk <= MOST_ROUNDINGS * rounding else rounding


@cache
def _marchenko_pastur_median(beta: float) -> float:
    """Median of the Marchenko-Pastur law with this aspect ratio in (0, 1] and variance 1."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    # in the square root of x the density stays finite, also for a square matrix, where it does not in x
    roots = torch.linspace(math.sqrt(low), math.sqrt(high), 20_001, dtype=torch.float64)
    x = roots.square()
    density = ((high - x) * (x - low)).clamp(min=0).sqrt() / roots.clamp(min=1e-12)
    total = torch.cumulative_trapezoid(density, roots)
    return float(x[1:][total >= total[-1] / 2][0])
