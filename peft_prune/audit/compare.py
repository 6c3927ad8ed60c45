"""What became of one tensor: read strip by strip from both checkpoints, never with a second matrix in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..spectral import StripGram, effective_rank, energy_rank
from .matching import Pair

KEPT_VALUES = 512
"""Singular values that are kept for the figures."""


@dataclass(frozen=True)
class MatrixChange:
    """One matrix that differs from the base's, with ΔW = W1 − W0.

    Args:
        name: Its name in the model.
        shape: Its shape as stored.
        elements_changed: Share of elements that differ.
        rank: Singular values of ΔW above what rounding to the checkpoint's dtype alone would make (`rounding_edge`).
        effective_rank: exp of the entropy of ΔW's singular values (Roy and Vetterli 2007).
        rank_99: Fewest directions that hold 99 % of ‖ΔW‖_F².
        delta_spectral_norm: ‖ΔW‖₂.
        delta_frobenius_norm: ‖ΔW‖_F.
        rounding_edge: Estimate of the largest singular value of rounding errors alone, see `_RoundingErrors`.
        sigma_max_base: σmax(W0).
        frobenius_norm_base: ‖W0‖_F.
        condition_number_base: κ(W0).
        condition_number: κ(W1).
        singular_values: Of ΔW, the largest `KEPT_VALUES`.
    """

    name: str
    shape: tuple[int, ...]
    elements_changed: float
    rank: int
    effective_rank: float
    rank_99: int
    delta_spectral_norm: float
    delta_frobenius_norm: float
    rounding_edge: float
    sigma_max_base: float
    frobenius_norm_base: float
    condition_number_base: float
    condition_number: float
    singular_values: tuple[float, ...]

    @property
    def growth(self) -> float:
        """κ(W1) / κ(W0); 1 where both are infinite."""
        if math.isinf(self.condition_number_base):
            return 1.0
        return self.condition_number / self.condition_number_base

    @property
    def relative_norm(self) -> float:
        """‖ΔW‖₂ / σmax(W0)."""
        return self.delta_spectral_norm / self.sigma_max_base if self.sigma_max_base > 0 else math.inf


@dataclass(frozen=True)
class OtherChange:
    """A tensor that differs and is no matrix: a bias, a norm, a stack of experts.

    Args:
        name: Its name in the model.
        shape: Its shape.
        delta_norm: Euclidean norm of the difference.
        base_norm: Of the base's tensor.
    """

    name: str
    shape: tuple[int, ...]
    delta_norm: float
    base_norm: float


def differs(pair: Pair) -> bool:
    """Whether the edited tensor is another one than the base's rounded to the edited one's dtype.

    A checkpoint that was only saved in another dtype has therefore not changed.
    """
    for before, after in _strips(pair):
        if not torch.equal(before.to(after.dtype), after):
            return True
    return False


class BaseMatrix:
    """What is known of a base matrix and asked for again at every checkpoint of a series."""

    def __init__(self) -> None:
        self.gram: StripGram | None = None

    @cached_property
    def spectrum(self) -> Tensor:
        """Singular values of W0."""
        assert self.gram is not None
        return self.gram.singular_values()


def compare_matrix(pair: Pair, base: BaseMatrix) -> MatrixChange:
    """The figures of a matrix that differs; one pass over both files.

    Memory: three n × n float64 matrices, n the shorter side, beside some strips; of a matrix that is wider than high
    also the matrix itself, once for each checkpoint, in its own dtype.

    Raises:
        ValueError: A weight is NaN or Inf.
    """
    width = min(pair.base.shape)
    before, after, delta = StripGram(width), StripGram(width), StripGram(width)
    rounding, changed, squared_base = _RoundingErrors(width), 0, 0.0
    for old, new in tall_strips(pair):
        difference = new.double() - old.double()
        if base.gram is None:
            before.add(old)
        after.add(new)
        delta.add(difference)
        changed += int((difference != 0).sum())
        squared_base += float(old.double().square().sum())
        rounding.add(new, difference)
    if base.gram is None:
        base.gram = before
    values, spectrum = delta.singular_values(), base.spectrum
    count = pair.base.shape[0] * pair.base.shape[1]
    condition, condition_base = after.condition(), base.gram.condition()
    # values below 1e-7 of the largest are lost in the Gram matrix
    noise = max(rounding.edge, 1e-7 * float(values[0]))
    return MatrixChange(
        name=pair.name,
        shape=pair.base.shape,
        elements_changed=changed / count,
        rank=int((values > noise).sum()),
        effective_rank=effective_rank(values),
        rank_99=energy_rank(values, 0.99),
        delta_spectral_norm=float(values[0]),
        delta_frobenius_norm=float(torch.linalg.vector_norm(values)),
        rounding_edge=rounding.edge,
        sigma_max_base=float(spectrum[0]),
        frobenius_norm_base=math.sqrt(squared_base),
        condition_number_base=condition_base.condition_number,
        condition_number=condition.condition_number,
        singular_values=tuple(values[:KEPT_VALUES].tolist()),
    )


def compare_other(pair: Pair) -> OtherChange:
    """How far a tensor that is no matrix has moved."""
    squared, squared_base = 0.0, 0.0
    for before, after in _strips(pair):
        squared += float((after.double() - before.double()).square().sum())
        squared_base += float(before.double().square().sum())
    return OtherChange(pair.name, pair.base.shape, math.sqrt(squared), math.sqrt(squared_base))


def tall_strips(pair: Pair) -> Iterator[tuple[Tensor, Tensor]]:
    """Strips of both matrices, transposed where they are wider than high, so that every strip has the shorter side's
    width."""
    rows, columns = pair.base.shape
    if rows >= columns:
        yield from _strips(pair)
        return
    before, after = pair.base.whole(), pair.edited.whole()
    step = max(2**21 // rows, 1)
    for start in range(0, columns, step):
        yield before[:, start : start + step].T, after[:, start : start + step].T


def _strips(pair: Pair) -> Iterator[tuple[Tensor, Tensor]]:
    widest = pair.base if pair.base.row_bytes >= pair.edited.row_bytes else pair.edited
    for start, stop in widest.strips():
        yield pair.base.rows(start, stop), pair.edited.rows(start, stop)


class _RoundingErrors:
    """The size of a matrix of independent rounding errors, whose variances differ from element to element.

    Its spectral norm is about the largest row norm plus the largest column norm of the standard deviations (Bandeira
    and van Handel 2016, corollary 3.9, without the logarithmic term). An error is that of storing W1 in its dtype, and
    of having ΔW in that dtype before it was added, as tools do that work in half precision.
    """

    def __init__(self, width: int) -> None:
        self._columns = torch.zeros(width, dtype=torch.float64)
        self._largest_row = 0.0

    def add(self, stored: Tensor, difference: Tensor) -> None:
        """Take the next rows of W1 and of ΔW."""
        variances = _rounding_variances(stored) + _rounding_variances(difference.to(stored.dtype))
        self._columns = self._columns.to(variances.device) + variances.sum(0)
        self._largest_row = max(self._largest_row, float(variances.sum(1).max()))

    @property
    def edge(self) -> float:
        """The estimate."""
        return math.sqrt(self._largest_row) + math.sqrt(float(self._columns.max()))


def _rounding_variances(values: Tensor) -> Tensor:
    """A twelfth of the squared unit in the last place of every element, float64."""
    _, exponent = torch.frexp(values.float() if values.dtype != torch.float64 else values)
    half_unit = torch.full_like(exponent, torch.finfo(values.dtype).eps / 2, dtype=torch.float64)
    # frexp's mantissa lies in [0.5, 1), so a unit in the last place is eps times half of two to the exponent
    return torch.where(values == 0, 0.0, torch.ldexp(half_unit, exponent)).square() / 12
