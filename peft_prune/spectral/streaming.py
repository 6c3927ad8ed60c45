"""The spectrum of a matrix that is seen strip by strip and never whole, for matrices that stay in a file."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import require_finite
from .condition import ConditionReport, report_of
from .gram import add_lower_gram


class StripGram:
    """XᵀX of a matrix X, (N, n), summed over its row strips in float64; n² numbers are kept, whatever N is.

    Singular values come from the eigenvalues of XᵀX: the absolute error of s² is about 1e-16 · ‖X‖₂², so a value below
    1e-7 · ‖X‖₂ is not told from zero, and σmin has a relative error of at most 1e-3 up to κ = 1e6.

    Args:
        width: n, the shorter side of X; give the strips of Xᵀ where X has more columns than rows.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._lower: Tensor | None = None
        self._values: Tensor | None = None

    @torch.no_grad()
    def add(self, strip: Tensor) -> None:
        """Take the next rows, (rows, n), of any floating dtype.

        Raises:
            ValueError: The strip has another width, or holds NaN or Inf.
        """
        if strip.ndim != 2 or strip.shape[1] != self._width:
            raise ValueError(f"strip: shape {tuple(strip.shape)} must be (rows, {self._width})")
        require_finite("strip", strip)
        if self._lower is None:
            self._lower = torch.zeros(self._width, self._width, dtype=torch.float64, device=strip.device)
        add_lower_gram(self._lower, strip.double())
        self._values = None

    @torch.no_grad()
    def singular_values(self) -> Tensor:
        """All n singular values, (n,) float64, descending; zeros before a strip was added."""
        if self._lower is None:
            return torch.zeros(self._width, dtype=torch.float64)
        if self._values is None:
            # eigvalsh reads the lower triangle alone
            self._values = torch.linalg.eigvalsh(self._lower).flip(0).clamp(min=0).sqrt()
        return self._values

    @torch.no_grad()
    def leading(self, count: int) -> Tensor:
        """The right singular vectors of the ``count`` largest values, (n, count) float64, orthonormal columns."""
        if self._lower is None:
            return torch.zeros(self._width, 0, dtype=torch.float64)
        return torch.linalg.eigh(self._lower).eigenvectors[:, self._width - count :].flip(1)

    def condition(self) -> ConditionReport:
        """Extreme singular values and κ; σmin 0.0 and κ inf where X is numerically singular."""
        values = self.singular_values()
        return report_of(float(values[0]), float(values[-1]))


def effective_rank(singular_values: Tensor) -> float:
    """exp of the entropy of the singular values over their sum (Roy and Vetterli 2007); 0 for a zero matrix.

    Args:
        singular_values: (k,), not negative.
    """
    values = singular_values.double()
    total = float(values.sum())
    if total == 0:
        return 0.0
    shares = values[values > 0] / total
    return math.exp(float(-(shares * shares.log()).sum()))
