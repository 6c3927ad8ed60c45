"""What became of one tensor: read strip by strip from both checkpoints, never with a second matrix in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..spectral import RoundingErrors, StripGram, effective_rank, energy_rank, noise_edge
from .checkpoint import STRIP_ELEMENTS
from .matching import Pair

KEPT_VALUES = 512
"""Singular values that are kept for the figures."""


@dataclass(frozen=True)
class MatrixChange:
    """One matrix that differs from the base's, with ΔW = W1 − W0.

    Args:
        name: Its name in the model.
        shape: Its shape as stored.
        elements_changed: Share of elements that differ by more than the rounding of one checkpoint's dtype.
        rank: Singular values of ΔW above ``noise_edge``.
        effective_rank: exp of the entropy of ΔW's singular values (Roy and Vetterli 2007).
        rank_99: Fewest directions that hold 99 % of ‖ΔW‖_F².
        delta_spectral_norm: ‖ΔW‖₂.
        delta_frobenius_norm: ‖ΔW‖_F.
        noise_edge: Estimate of the largest singular value that rounding alone has made.
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
    noise_edge: float
    sigma_max_base: float
    frobenius_norm_base: float
    condition_number_base: float
    condition_number: float
    singular_values: tuple[float, ...]

    @property
    def growth(self) -> float:
        """κ(W1) / κ(W0); NaN where W0 is singular, so that κ cannot tell."""
        if math.isinf(self.condition_number_base):
            return math.nan
        return self.condition_number / self.condition_number_base

    @property
    def relative_norm(self) -> float:
        """‖ΔW‖₂ / σmax(W0); inf for W0 = 0."""
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


@dataclass(frozen=True)
class Look:
    """A first look at a pair.

    Args:
        differs: Whether one is not the other rounded to its own dtype; a checkpoint that was only saved in another
            dtype has not changed.
        not_finite: Elements that are NaN or Inf before and after.
    """

    differs: bool
    not_finite: tuple[int, int]


def look(pair: Pair) -> Look:
    """Read both tensors once."""
    rounded_there = rounded_back = True
    broken = [0, 0]
    for before, after in _strips(pair):
        rounded_there = rounded_there and torch.equal(before.to(after.dtype), after)
        rounded_back = rounded_back and torch.equal(after.to(before.dtype), before)
        if before.is_floating_point():
            for side, values in enumerate((before, after)):
                broken[side] += values.numel() - int(torch.isfinite(values).sum())
    return Look(not (rounded_there or rounded_back), (broken[0], broken[1]))


class BaseMatrix:
    """What is known of a base matrix and asked for again at every checkpoint of a series."""

    def __init__(self) -> None:
        self.gram: StripGram | None = None


def compare_matrix(pair: Pair, base: BaseMatrix) -> MatrixChange:
    """The figures of a matrix that differs; one pass over both files.

    Memory: three n × n float64 matrices and the work space of their eigenvalues, n the shorter side, beside some
    strips; of a matrix that is wider than high also the matrix itself, once for each checkpoint, in its own dtype.
    """
    width = min(pair.base.shape)
    before, after, delta = StripGram(width), StripGram(width), StripGram(width)
    rounding, changed, squared_base = RoundingErrors(width), 0, 0.0
    for old, new in tall_strips(pair):
        difference = new.double() - old.double()
        if base.gram is None:
            before.add(old)
        after.add(new)
        delta.add(difference)
        changed += int(((old.to(new.dtype) != new) & (new.to(old.dtype) != old)).sum())
        squared_base += float(old.double().square().sum())
        # storing W1; having ΔW in that dtype before it was added, as tools do that work in half precision; and, where
        # the base was stored more coarsely, what is lost of it
        rounding.add(new, difference.to(new.dtype), *((old,) if old.dtype != new.dtype else ()))
    if base.gram is None:
        base.gram = before
    values, spectrum = delta.singular_values(), base.gram.singular_values()
    rows, columns = pair.base.shape
    edge = noise_edge(values, rounding.edge, (rows, columns))
    condition, condition_base = after.condition(), base.gram.condition()
    return MatrixChange(
        name=pair.name,
        shape=pair.base.shape,
        elements_changed=changed / (rows * columns),
        # values below 1e-7 of the largest are lost in the Gram matrix
        rank=int((values > max(edge, 1e-7 * float(values[0]))).sum()),
        effective_rank=effective_rank(values),
        rank_99=energy_rank(values, 0.99),
        delta_spectral_norm=float(values[0]),
        delta_frobenius_norm=float(torch.linalg.vector_norm(values)),
        noise_edge=edge,
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
    step = max(STRIP_ELEMENTS // rows, 1)
    for start in range(0, columns, step):
        yield before[:, start : start + step].T, after[:, start : start + step].T


def _strips(pair: Pair) -> Iterator[tuple[Tensor, Tensor]]:
    for start, stop in pair.base.strips():
        yield pair.base.rows(start, stop), pair.edited.rows(start, stop)
