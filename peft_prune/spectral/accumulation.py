"""Sums of updates whose rank stays at most min(out, in), and what shrinks their leading singular values.

Up to that rank a sum is its factors side by side. Beyond it the dense matrix is the shorter form: the identity on the
shorter side and ΔW itself on the other, so that one more update costs one addition and no decomposition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .gram import gram, in_float64, multiply_right
from .lanczos import eigenpairs_above
from .lowrank import LowRankUpdate

_STRIP = 2048
_REFRESH = 4096
"""Columns after which a grown Gram matrix is computed anew, long before its rounding shows."""


def accumulated(update: LowRankUpdate, new: LowRankUpdate) -> LowRankUpdate:
    """The sum of two updates in factors of rank at most min(out, in); exact up to that rank, one rounding beyond.

    Raises:
        ValueError: ``new`` has another shape (out, in), dtype or device.
    """
    if update.rank + new.rank <= min(update.shape):
        return update.append(new)
    update._require_same_kind(new)
    if not is_dense_form(update):
        return dense_form(update.append(new))
    if new.rank == 0:
        return update
    if update.shape[0] <= update.shape[1]:
        return LowRankUpdate(update.B, torch.addmm(update.A, new.B, new.A))
    return LowRankUpdate(torch.addmm(update.B, new.B, new.A), update.A)


def dense_form(update: LowRankUpdate) -> LowRankUpdate:
    """The update as I · ΔW for out ≤ in, else as ΔW · I; summed in float64 strip by strip, rounded once."""
    if is_dense_form(update):
        return update
    out_features, in_features = update.shape
    dense = update.A.new_empty(out_features, in_features)
    left = update.B.double()
    for start in range(0, in_features, _STRIP):
        dense[:, start : start + _STRIP] = left @ update.A[:, start : start + _STRIP].double()
    return of_dense(dense)


def dense_matrix(update: LowRankUpdate) -> Tensor:
    """ΔW itself, (out, in), summed as `dense_form` does."""
    dense = dense_form(update)
    return dense.A if update.shape[0] <= update.shape[1] else dense.B


def of_dense(matrix: Tensor) -> LowRankUpdate:
    """The dense form of a matrix ΔW, (out, in)."""
    side = min(matrix.shape)
    identity = torch.eye(side, dtype=matrix.dtype, device=matrix.device)
    if matrix.shape[0] <= matrix.shape[1]:
        return LowRankUpdate(identity, matrix)
    return LowRankUpdate(matrix, identity)


def is_dense_form(update: LowRankUpdate) -> bool:
    """Whether the factor on the shorter side is the identity."""
    side = min(update.shape)
    if update.rank != side or side == 0:
        return False
    small = update.B if update.shape[0] <= update.shape[1] else update.A
    return bool((small.diagonal() == 1).all()) and int(torch.count_nonzero(small)) == side


def wide_matrix(update: LowRankUpdate) -> Tensor:
    """ΔW of an update in dense form, transposed where out > in, so that it has no more rows than columns."""
    return update.A if update.shape[0] <= update.shape[1] else update.B.T


def sides(update: LowRankUpdate) -> tuple[Tensor, Tensor]:
    """The factors on the shorter and on the longer side as columns: N, (n, r), and F, (N, r), with ΔW or ΔWᵀ = N Fᵀ."""
    return (update.B, update.A.T) if update.shape[0] <= update.shape[1] else (update.A.T, update.B)


def of_sides(near: Tensor, far: Tensor, shape: tuple[int, int]) -> LowRankUpdate:
    """The update of this shape with these factors, as `sides` gives them."""
    if shape[0] <= shape[1]:
        return LowRankUpdate(near, far.T)
    return LowRankUpdate(far, near.T)


@dataclass(frozen=True, eq=False)
class GrownGram:
    """ΔW ΔWᵀ on the shorter side of an update, (n, n) float64, that grows with it: a new column costs n N at most.

    Args:
        matrix: The Gram matrix at some moment, (n, n).
        since: What has been added to the update since then.
        age: Columns that were added since it was last computed in full.
    """

    matrix: Tensor
    since: LowRankUpdate
    age: int = 0

    @classmethod
    @torch.no_grad()
    def of(cls, update: LowRankUpdate) -> GrownGram:
        """From the whole update: r² N + n² r operations for its rank r, n² N in dense form."""
        near, far = sides(update)
        matrix = gram(far)
        if not is_dense_form(update):
            left = near.double()
            matrix = left @ matrix @ left.T
            matrix = (matrix + matrix.T) / 2
        return cls(matrix, LowRankUpdate.zeros(*update.shape, dtype=update.dtype, device=update.device))

    def added(self, new: LowRankUpdate) -> GrownGram:
        """The Gram matrix after ``new`` was added; nothing is computed before `at` asks for it."""
        return GrownGram(self.matrix, self.since.append(new), self.age + new.rank)

    @torch.no_grad()
    def at(self, update: LowRankUpdate) -> GrownGram:
        """The same with everything added so far in the matrix; ``update`` is the sum."""
        count = self.since.rank
        if count == 0:
            return self
        if self.age > _REFRESH or 2 * count > self.matrix.shape[0]:
            return GrownGram.of(update)
        near, far = (columns.double() for columns in sides(self.since))
        inner = far.T @ far
        # (R + N Fᵀ)(R + N Fᵀ)ᵀ - R Rᵀ with S = R + N Fᵀ at hand: S F Nᵀ + N (S F)ᵀ - N FᵀF Nᵀ
        product = _times(update, far) - near @ inner / 2
        columns, others = torch.cat([product, near], dim=1), torch.cat([near, product], dim=1)
        return GrownGram(
            torch.addmm(self.matrix, columns, others.T),
            LowRankUpdate.zeros(*update.shape, dtype=update.dtype, device=update.device),
            self.age,
        )


@torch.no_grad()
def leading_directions(matrix: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Singular values above ``limit``, (k,) descending, and their vectors on the shorter side, (n, k).

    Args:
        matrix: Gram matrix on the shorter side, (n, n) float64.
        limit: Above 0.
    """
    values, vectors = eigenpairs_above(matrix, limit * limit)
    return values.clamp(min=0).sqrt(), vectors


@torch.no_grad()
def shrunk(update: LowRankUpdate, vectors: Tensor, weights: Tensor) -> tuple[LowRankUpdate, LowRankUpdate]:
    """ΔW - U diag(weights) Uᵀ ΔW in the form of ``update``, and the change -U diag(weights) Uᵀ ΔW as factors.

    In dense form the long side is written anew; else the factor on the shorter side, and the other is shared.

    Args:
        vectors: U, (n, k) float64, on the shorter side.
        weights: (k,) float64.
    """
    near, far = sides(update)
    left = vectors * -weights
    if is_dense_form(update):
        far, right = _with_added(far, vectors, left)
    else:
        new, small = _with_added(near.T, vectors, left)
        near, right = new.T.contiguous(), multiply_right(far, small, far.dtype)
    change = of_sides(left.to(near.dtype), right.to(near.dtype), update.shape)
    return of_sides(near, far, update.shape), change


def _with_added(columns: Tensor, vectors: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """X + X V Lᵀ in X's dtype and X V in float64, for X (rows, n); computed in float64 strip by strip."""
    result, inner = torch.empty_like(columns), vectors.new_empty(vectors.shape[1], columns.shape[0])
    for start in range(0, columns.shape[0], _STRIP):
        strip = columns[start : start + _STRIP].T.double()
        small = vectors.T @ strip
        inner[:, start : start + _STRIP] = small
        result[start : start + _STRIP] = torch.addmm(strip, left, small).T
    return result, inner.T


def _times(update: LowRankUpdate, columns: Tensor) -> Tensor:
    """ΔW X, (n, k), or ΔWᵀ X where out > in, in float64, strip by strip."""
    near, far = sides(update)
    small = columns.new_zeros(far.shape[1], columns.shape[1])
    done = 0
    for strip in in_float64(far):
        small.addmm_(strip.T, columns[done : done + strip.shape[0]])
        done += strip.shape[0]
    return small if is_dense_form(update) else multiply_right(near, small, small.dtype)
