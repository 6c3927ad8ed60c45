"""The condition number of W₀ + B A, after one factorization of W₀ and without an SVD for each update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .accumulation import dense_matrix
from .checks import require_finite, require_matrix
from .gram import gram, in_float64
from .lanczos import largest_eigenvalue
from .lowrank import LowRankUpdate

_TOLERANCE = 1e-4
_LARGEST_CONDITION = 1e7
_EXACT_GRAM = 1e8
"""Spread of a Gram matrix's eigenvalues up to which float64 gives the smallest one."""
_MOST_MOVED = 4096
"""Columns by which a reference is moved before it is computed anew, long before its rounding shows."""


@dataclass(frozen=True)
class ConditionReport:
    """The extreme singular values of a matrix and κ = σmax/σmin; σmin 0.0 and κ inf where numerically singular."""

    sigma_max: float
    sigma_min: float
    condition_number: float


@dataclass(frozen=True, eq=False)
class ProjectedUpdate:
    """An update with its products with W₀, so that the next one, grown from it, pays for its new columns only.

    With Q the eigenvectors of W₀W₀ᵀ, written for out ≤ in (else for the transposed matrices, A and B exchanged):

    Args:
        update: The update these products belong to.
        near: Qᵀ B, (out, r), float64.
        far: Qᵀ W₀ Aᵀ, (out, r), float64.
        gram: A Aᵀ, (r, r), float64.
    """

    update: LowRankUpdate
    near: Tensor
    far: Tensor
    gram: Tensor


class Products:
    """Products of updates with a matrix W and an orthonormal basis Q of its shorter side, for columns that are new.

    Args:
        weight: W, (out, in); not copied, and not to be changed afterwards.
        basis: Q, (n, n) float64, n the shorter side.
    """

    def __init__(self, weight: Tensor, basis: Tensor) -> None:
        self._shape = tuple(weight.shape)
        self._transposed = weight.shape[0] > weight.shape[1]
        self._wide = weight.detach().T if self._transposed else weight.detach()
        self._basis = basis

    @torch.no_grad()
    def project(self, update: LowRankUpdate, previous: ProjectedUpdate | None = None) -> ProjectedUpdate:
        """The products of an update with W₀, taken over from ``previous`` for leading columns that are the same.

        After `LowRankUpdate.append` only the new columns cost a product with W₀, and after `restrain` none (where out
        ≤ in it leaves A as it is, else B).

        Args:
            update: Update of shape (out, in).
            previous: The result for an earlier update on the same W₀; not changed.

        Raises:
            ValueError: The update has another shape than W₀, or holds NaN or Inf.
        """
        if update.shape != self._shape:
            raise ValueError(f"update: shape {update.shape} must be that of the weight, {self._shape}")
        require_finite("B", update.B)
        require_finite("A", update.A)
        near, far = self._sides(update)
        if previous is None:
            previous = self._nothing(update)
        old_near, old_far = self._sides(previous.update)
        near_known, far_known = _same_leading(old_near, near), _same_leading(old_far, far)
        products = self._basis.T @ self._weight_times(far[:, far_known:])
        return ProjectedUpdate(
            update,
            torch.cat([previous.near[:, :near_known], self._basis.T @ near[:, near_known:].double()], dim=1),
            torch.cat([previous.far[:, :far_known], products], dim=1),
            _grown_gram(previous.gram[:far_known, :far_known], far),
        )

    def _sides(self, update: LowRankUpdate) -> tuple[Tensor, Tensor]:
        return (update.A.T, update.B) if self._transposed else (update.B, update.A.T)

    def _nothing(self, update: LowRankUpdate) -> ProjectedUpdate:
        empty = self._basis.new_zeros(self._basis.shape[0], 0)
        none = LowRankUpdate.zeros(*update.shape, dtype=update.dtype, device=update.device)
        return ProjectedUpdate(none, empty, empty, empty[:0])

    def _weight_times(self, columns: Tensor) -> Tensor:
        product = self._basis.new_zeros(self._wide.shape[0], columns.shape[1])
        if columns.shape[1] == 0:
            return product
        done = 0
        # Products in float32 would lose sigma_min once κ passes 1e3: (W₀ + BA)(W₀ + BA)ᵀ cancels.
        for strip in in_float64(self._wide.T):
            product.addmm_(strip.T, columns[done : done + strip.shape[0]].double())
            done += strip.shape[0]
        return product


class ConditionNumber(Products):
    """κ of W₀ and of W₀ + B A from one eigenfactorization W₀W₀ᵀ = Q diag(λ) Qᵀ of the smaller side, in float64.

    In the basis Q, (W₀ + BA)(W₀ + BA)ᵀ is a diagonal matrix plus a low-rank part. A Lanczos iteration finds its
    largest eigenvalue, and the smallest one as the largest of the inverse, by the Woodbury identity (shifted, so that
    a singular W₀ is no exception). From 2r ≥ min(out, in) on, the small side is solved densely instead.

    Set-up: O(n² N + n³) operations for n = min(out, in), N = max(out, in); n² float64 numbers are kept, and a
    reference to ``weight``. An update of rank r costs O(n² r + n N r) once (of which only new columns with
    `project`), and O(n r² + n r) per step.

    Accuracy: relative error at most 1e-3 up to κ = 1e6. Beyond, the Gram matrix loses σmin as 1e-16 κ², and above
    κ = 1e7 the matrix counts as singular: σmin 0.0, κ inf.

    Args:
        weight: W₀, (out, in); not copied, and not to be changed afterwards.

    Raises:
        ValueError: ``weight`` is not a matrix, is empty, or holds NaN or Inf.
    """

    @torch.no_grad()
    def __init__(self, weight: Tensor) -> None:
        require_matrix("weight", weight)
        require_finite("weight", weight)
        if weight.numel() == 0:
            raise ValueError(f"weight: shape {tuple(weight.shape)} must hold at least one element")
        wide = weight.detach().T if weight.shape[0] > weight.shape[1] else weight.detach()
        self._hold(weight, *torch.linalg.eigh(gram(wide.T)))

    def _hold(self, weight: Tensor, values: Tensor, basis: Tensor) -> None:
        super().__init__(weight, basis)
        self._values = values.clamp(min=0)
        none = LowRankUpdate.zeros(*weight.shape, dtype=weight.dtype, device=weight.device)
        first = torch.zeros_like(self._values)
        first[0] = 1.0
        self._base = report_of(math.sqrt(float(self._values[-1])), self._stretch(first, none))

    @property
    def sigma_max(self) -> float:
        """Largest singular value of W₀."""
        return self._base.sigma_max

    @property
    def sigma_min(self) -> float:
        """Smallest of the min(out, in) singular values of W₀."""
        return self._base.sigma_min

    @property
    def condition_number(self) -> float:
        """κ(W₀) = σmax/σmin, inf where W₀ is numerically singular."""
        return self._base.condition_number

    @torch.no_grad()
    def moved(self, weight: Tensor, change: ProjectedUpdate) -> ConditionNumber:
        """κ of W₀ + B A = ``weight`` from the factors of W₀ and the products of the update: n³ operations, none of N.

        The Gram matrix is not computed anew, so its error grows by one rounding with every move. It must go on to be
        that of ``weight``: hence weights in float64.
        """
        values, vectors = torch.linalg.eigh(_DiagonalPlusLowRank(self._values, change).dense())
        found = ConditionNumber.__new__(ConditionNumber)
        found._hold(weight, values, self._basis @ vectors)
        return found

    @torch.no_grad()
    def of(self, update: LowRankUpdate | ProjectedUpdate, *, sparing: bool = False) -> ConditionReport:
        """Extreme singular values and κ of W₀ + B A.

        Args:
            update: Update of shape (out, in), or what `project` made of it.
            sparing: Take σmin from the Gram matrix where κ is below 1e4, at an error of at most 1e-6, and spare the
                last product with W₀.

        Raises:
            ValueError: The update has another shape than W₀, or holds NaN or Inf.
        """
        projected = update if isinstance(update, ProjectedUpdate) else self.project(update)
        if projected.update.rank == 0:
            return self._base
        changed = _DiagonalPlusLowRank(self._values, projected)
        if 2 * projected.update.rank >= self._values.numel():
            values, vectors = torch.linalg.eigh(changed.dense())
            largest, bottom = float(values[-1]), vectors[:, 0]
        else:
            largest = changed.largest()
            bottom = changed.bottom(largest)
        smallest = float(bottom @ changed.times(bottom))
        if sparing and smallest * _EXACT_GRAM > max(largest, float(self._values[-1])):
            return report_of(math.sqrt(largest), math.sqrt(smallest))
        return report_of(math.sqrt(max(largest, 0.0)), self._stretch(bottom, projected.update))

    @torch.no_grad()
    def energies(self, update: LowRankUpdate | ProjectedUpdate) -> Tensor:
        """‖qᵢᵀ ΔW‖² for W₀'s singular vectors qᵢ on its shorter side, (n,) float64, of the smallest value first.

        They sum to ‖ΔW‖_F². For out > in these are the right singular vectors, and the norm is that of ΔW qᵢ.

        Raises:
            ValueError: The update has another shape than W₀, or holds NaN or Inf.
        """
        projected = update if isinstance(update, ProjectedUpdate) else self.project(update)
        return ((projected.near @ projected.gram) * projected.near).sum(1).clamp(min=0)

    @torch.no_grad()
    def spectral_norm(self, update: LowRankUpdate | ProjectedUpdate) -> float:
        """‖ΔW‖₂, to a relative error of 1e-4; no more than products with what `project` keeps.

        Raises:
            ValueError: The update has another shape than W₀, or holds NaN or Inf.
        """
        projected = update if isinstance(update, ProjectedUpdate) else self.project(update)
        near, inner = projected.near, projected.gram
        if near.shape[1] == 0:
            return 0.0
        result = largest_eigenvalue(lambda x: near @ (inner @ (near.T @ x)), near.shape[0], near.device, _TOLERANCE)
        return math.sqrt(max(result.value, 0.0))

    def _stretch(self, vector: Tensor, update: LowRankUpdate) -> float:
        """‖(W₀ + BA)ᵀ v‖ for v given in the basis Q; at the vector of σmin it is free of the Gram matrix's error."""
        near, far = self._sides(update)
        vector = self._basis @ vector
        small = near.double().T @ vector
        squares = 0.0
        for weight_strip, far_strip in zip(in_float64(self._wide.T), in_float64(far), strict=True):
            squares += float((weight_strip @ vector + far_strip @ small).square().sum())
        return math.sqrt(squares)


class Reference:
    """Figures of W₀ + ΔW for updates ΔW = ΔW_ref + D with D of low rank, however large the rank of ΔW_ref.

    W₀ + ΔW_ref is factored as W₀ is, and D pays for its columns alone, as an update of low rank on W₀ does. Set-up: two
    Gram matrices and an eigenfactorization; three n x n matrices and two of the weight's shape are kept, W₀ + ΔW_ref
    in float64.

    Args:
        base: κ of W₀.
        reference: ΔW_ref, of W₀'s shape.
    """

    @torch.no_grad()
    def __init__(self, base: ConditionNumber, reference: LowRankUpdate) -> None:
        dense = dense_matrix(reference)
        wide = dense.T if base._transposed else dense
        weight = base._wide.T if base._transposed else base._wide
        shifted = weight.double().add_(dense) if weight.dtype != torch.float64 else weight + dense
        self._hold(base, dense, ConditionNumber(shifted), base._basis.T @ gram(wide.T) @ base._basis, moved_by=0)

    def _hold(
        self, base: ConditionNumber, dense: Tensor, shifted: ConditionNumber, gram_in_basis: Tensor, moved_by: int
    ) -> None:
        self.dense = dense
        self._base, self._shifted, self._gram, self._moved_by = base, shifted, gram_in_basis, moved_by
        self._products = Products(dense, base._basis)
        self._condition: ProjectedUpdate | None = None
        self._projected: ProjectedUpdate | None = None
        self._vector: Tensor | None = None

    @torch.no_grad()
    def moved(self, change: LowRankUpdate) -> Reference | None:
        """The same around ΔW_ref + ``change``, without a product of two large matrices; None where that is too far."""
        moved_by = self._moved_by + change.rank
        if moved_by > _MOST_MOVED or 2 * change.rank > self._gram.shape[0]:
            return None
        own = self._project(change)
        beside = own.near @ (own.far + own.near @ own.gram / 2).T
        dense = torch.addmm(self.dense, change.B, change.A)
        old = self._shifted._wide.T if self._base._transposed else self._shifted._wide
        weight = torch.addmm(old, change.B.double(), change.A.double())
        shifted = self._shifted.moved(weight, self._shifted.project(change, self._condition))
        found = Reference.__new__(Reference)
        found._hold(self._base, dense, shifted, self._gram + beside + beside.T, moved_by)
        return found

    def condition(self, change: LowRankUpdate) -> ConditionReport:
        """As `ConditionNumber.of`, for ΔW_ref + ``change``."""
        self._condition = self._shifted.project(change, self._condition)
        # there are two large matrices to be read here, one of them in float64
        return self._shifted.of(self._condition, sparing=True)

    @torch.no_grad()
    def energies(self, change: LowRankUpdate) -> Tensor:
        """As `ConditionNumber.energies`, for ΔW_ref + ``change``."""
        own = self._project(change)
        return (self._gram.diagonal() + ((own.near @ own.gram + 2 * own.far) * own.near).sum(1)).clamp(min=0)

    @torch.no_grad()
    def spectral_norm(self, change: LowRankUpdate) -> float:
        """As `ConditionNumber.spectral_norm`, for ΔW_ref + ``change``."""
        own = self._project(change)

        def apply(x: Tensor) -> Tensor:
            small = own.near.T @ x
            return self._gram @ x + own.far @ small + own.near @ (own.far.T @ x + own.gram @ small)

        found = largest_eigenvalue(apply, self._gram.shape[0], self._gram.device, _TOLERANCE, self._vector)
        self._vector = found.vector / torch.linalg.vector_norm(found.vector)
        return math.sqrt(max(found.value, 0.0))

    def _project(self, change: LowRankUpdate) -> ProjectedUpdate:
        if self._projected is None or self._projected.update is not change:
            self._projected = self._products.project(change, self._projected)
        return self._projected


class _DiagonalPlusLowRank:
    """diag(λ) + N Fᵀ + F Nᵀ + N G Nᵀ, (n, n), with its extreme eigenvalues; N, F (n, r), G (r, r), float64."""

    def __init__(self, values: Tensor, projected: ProjectedUpdate) -> None:
        near, far, gram_of = _evened(projected)
        identity = torch.eye(gram_of.shape[0], dtype=values.dtype, device=values.device)
        zeros = torch.zeros_like(identity)
        self.values = values
        self.columns = torch.cat([near, far], dim=1)
        self.core = torch.cat([torch.cat([gram_of, identity], dim=1), torch.cat([identity, zeros], dim=1)])
        self.core_inverse = torch.cat([torch.cat([zeros, identity], dim=1), torch.cat([identity, -gram_of], dim=1)])

    def times(self, x: Tensor) -> Tensor:
        return self.values * x + self.columns @ (self.core @ (self.columns.T @ x))

    def dense(self) -> Tensor:
        return torch.diag(self.values) + self.columns @ self.core @ self.columns.T

    def largest(self) -> float:
        """The largest eigenvalue."""
        start = torch.zeros_like(self.values)
        start[-1] = 1.0
        return largest_eigenvalue(self.times, start.numel(), start.device, _TOLERANCE, start).value

    def bottom(self, largest: float) -> Tensor:
        """Unit eigenvector (n,) of the smallest eigenvalue; the shift sinks until it no longer hides that value."""
        vector = torch.zeros_like(self.values)
        vector[0] = 1.0
        for shift in (1e-6 * largest, 1e-10 * largest, 1e-14 * largest):
            inverse = self.shifted_inverse(shift)
            pair = largest_eigenvalue(inverse, vector.numel(), vector.device, _TOLERANCE, vector)
            # What the Ritz vector still holds of large eigenvalues would outweigh a tiny smallest one.
            vector = inverse(inverse(pair.vector) / pair.value)
            vector = vector / torch.linalg.vector_norm(vector)
            if float(vector @ self.times(vector)) >= shift:
                break
        return vector

    def shifted_inverse(self, shift: float) -> Callable[[Tensor], Tensor]:
        """Products with (this + shift · I)⁻¹ by the Woodbury identity."""
        diagonal = 1.0 / (self.values + shift)
        scaled = diagonal[:, None] * self.columns
        factors = torch.linalg.lu_factor(self.core_inverse + self.columns.T @ scaled)

        def apply(x: Tensor) -> Tensor:
            small = torch.linalg.lu_solve(*factors, (scaled.T @ x)[:, None])
            return diagonal * x - scaled @ small[:, 0]

        return apply


def _evened(projected: ProjectedUpdate) -> tuple[Tensor, Tensor, Tensor]:
    """N, F and G with columns of N and rows of A brought to like norms by powers of two, which round nothing.

    Pivots are chosen by size: without this, columns of very different norms would be solved wrong, by luck or not.
    """
    near, far, inner = projected.near, projected.far, projected.gram
    sizes, others = torch.linalg.vector_norm(near, dim=0), inner.diagonal().clamp(min=0).sqrt()
    ratio = torch.where((sizes > 0) & (others > 0), others / sizes, torch.ones_like(sizes))
    scale = torch.exp2((torch.log2(ratio) / 2).round())
    return near * scale, far / scale, inner / scale / scale[:, None]


def _grown_gram(known: Tensor, columns: Tensor) -> Tensor:
    """The Gram matrix of ``columns``, (N, r), in float64, whose leading block is known already."""
    count = known.shape[0]
    if count == 0:
        return gram(columns)
    beside = known.new_zeros(columns.shape[1], columns.shape[1] - count)
    if beside.shape[1]:
        for strip in in_float64(columns):
            beside.addmm_(strip.T, strip[:, count:])
    return torch.cat([torch.cat([known, beside[:count].T]), beside], dim=1)


def _same_leading(old: Tensor, new: Tensor) -> int:
    """How many leading columns two matrices have in common, exactly."""
    if old.dtype != new.dtype or old.device != new.device:
        return 0
    count = min(old.shape[1], new.shape[1])
    same = (old[:, :count] == new[:, :count]).all(dim=0)
    return int(same.to(torch.int64).cumprod(0).sum())


def report_of(largest: float, smallest: float) -> ConditionReport:
    """The report for extreme singular values."""
    if smallest * _LARGEST_CONDITION <= largest:
        return ConditionReport(largest, 0.0, math.inf)
    return ConditionReport(largest, smallest, largest / smallest)
