"""Sums of updates whose rank stays at most min(out, in), and what shrinks their leading singular values.

Up to that rank a sum is its factors side by side. Beyond it the dense matrix is the shorter form: the identity on the
shorter side and ΔW itself on the other, so that one more update costs one addition and no decomposition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .gram import gram
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


@dataclass(frozen=True, eq=False)
class GrownGram:
    """ΔW ΔWᵀ on the shorter side of a dense update, (n, n) float64, that grows with it: a new column costs n N.

    Args:
        matrix: The Gram matrix at some moment, (n, n).
        since: What has been added to the update since then.
        age: Columns that were added since it was last computed in full.
    """

    matrix: Tensor
    since: LowRankUpdate
    age: int = 0

    @classmethod
    def of(cls, update: LowRankUpdate) -> GrownGram:
        """From an update in dense form: n² N operations."""
        nothing = LowRankUpdate.zeros(*update.shape, dtype=update.dtype, device=update.device)
        return cls(gram(wide_matrix(update).T), nothing)

    def added(self, new: LowRankUpdate) -> GrownGram:
        """The Gram matrix after ``new`` was added; nothing is computed before `at` asks for it."""
        return GrownGram(self.matrix, self.since.append(new), self.age + new.rank)

    @torch.no_grad()
    def at(self, update: LowRankUpdate) -> GrownGram:
        """The same with everything added so far in the matrix; ``update`` is the dense form of the sum."""
        count = self.since.rank
        if count == 0:
            return self
        if self.age > _REFRESH or 2 * count > self.matrix.shape[0]:
            return GrownGram.of(update)
        transposed = update.shape[0] > update.shape[1]
        near, far = (self.since.A.T, self.since.B) if transposed else (self.since.B, self.since.A.T)
        near, far = near.double(), far.double()
        inner = far.T @ far
        # (R + N Fᵀ)(R + N Fᵀ)ᵀ - R Rᵀ with S = R + N Fᵀ at hand: S F Nᵀ + N (S F)ᵀ - N FᵀF Nᵀ
        product = _product(wide_matrix(update), far) - near @ inner / 2
        columns, others = torch.cat([product, near], dim=1), torch.cat([near, product], dim=1)
        return GrownGram(
            torch.addmm(self.matrix, columns, others.T),
            type(self.since).zeros(*update.shape, dtype=update.dtype, device=update.device),
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
    """ΔW - U diag(weights) Uᵀ ΔW in dense form, and the change -U diag(weights) Uᵀ ΔW as factors.

    Args:
        update: In dense form.
        vectors: U, (n, k) float64, on the shorter side.
        weights: (k,) float64.
    """
    wide = wide_matrix(update)
    result, right = torch.empty_like(wide), wide.new_empty(vectors.shape[1], wide.shape[1])
    left = vectors * -weights
    for start in range(0, wide.shape[1], _STRIP):
        strip = wide[:, start : start + _STRIP].double()
        small = vectors.T @ strip
        right[:, start : start + _STRIP] = small
        result[:, start : start + _STRIP] = strip.addmm_(left, small)
    left = left.to(wide.dtype)
    if update.shape[0] <= update.shape[1]:
        return LowRankUpdate(update.B, result), LowRankUpdate(left, right)
    return LowRankUpdate(result.T.contiguous(), update.A), LowRankUpdate(right.T.contiguous(), left.T.contiguous())


def _product(wide: Tensor, columns: Tensor) -> Tensor:
    """W X, (n, k), in float64, strip by strip."""
    product = columns.new_zeros(wide.shape[0], columns.shape[1])
    for start in range(0, wide.shape[1], _STRIP):
        product.addmm_(wide[:, start : start + _STRIP].double(), columns[start : start + _STRIP])
    return product
