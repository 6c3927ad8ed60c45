"""The closed forms of the editors that solve for all keys of a batch at once, by the small side.

Every one of them needs M K with M = (A₀ + K_p K_pᵀ)⁻¹, where A₀ is fixed for a layer, K_p are the keys of earlier edits
and K those of the batch. A₀ is factored once; earlier keys enter by the Woodbury identity through a matrix that is as
wide as there are keys. Where they are no longer few against the layer's width, M itself is kept and brought up to date
with every batch, so that neither time nor memory grow any further. Everything here is float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..spectral.gram import gram
from ..spectral.inverse import inverse_from_cholesky_
from .pages import rest
from .second_moment import regularized_cholesky
from .solving import DTYPES, STRIP, Solving, filled, product

_FEW = 0.25
"""Keys, as a multiple of the layer's width, up to which a factor as wide as there are keys is the cheaper form."""

CONDENSED_AT = 1.25
"""Keys, as a multiple of the layer's width, above which they are condensed to as many as the layer is wide."""

_TELLS = 0.01
"""Float32's rounding of the largest eigenvalue, as a share of a threshold, up to which eigenvectors are found in it."""

_BLOCK = 2048

_SHARE = _FEW / 4
"""Keys, as a multiple of the layer's width, that are taken in together: what they need beside M stays small."""


@dataclass(frozen=True)
class Inverse:
    """A₀⁻¹ of one layer: `apply` takes K (in, n) to A₀⁻¹ K (in, n), `taken` gives it whole, (in, in) float64.

    What `taken` gives is the caller's own, to be changed in place. Where `apply` works with it, that is made anew when
    it is needed next.
    """

    apply: Callable[[Tensor], Tensor]
    taken: Callable[[], Tensor]


def moment_inverse(
    moment: Tensor, weight: float = 1.0, shrinkage: float = 0.0, solving: Solving | None = None
) -> Inverse:
    """A₀ = λC, inverted once from its Cholesky factor, in its memory.

    A product with the inverse takes a third of the time of a solve with the two triangular factors.

    Args:
        moment: C, (in, in).
        weight: λ.
        shrinkage: Multiple of C's mean diagonal that is added to its diagonal.
        solving: Where it is inverted, and how it is kept.
    """
    solving = solving or Solving()
    made = partial(_inverted, moment, shrinkage, solving)
    held = [made()]
    rest(held[0])
    rest(moment)

    def whole() -> Tensor:
        if not held:
            held.append(made())
        return held[0]

    def taken() -> Tensor:
        found = whole()
        held.clear()
        return found.double().div_(weight)

    def apply(keys: Tensor) -> Tensor:
        # few rows times a large matrix: row by row is the faster order, and the inverse is symmetric
        found = product(keys.T.contiguous(), whole()).T / weight
        rest(whole())
        return found

    return Inverse(apply, taken)


def _inverted(moment: Tensor, shrinkage: float, solving: Solving) -> Tensor:
    factor, added = regularized_cholesky(moment, shrinkage, solving)

    def times(columns: Tensor) -> Tensor:
        columns = columns.to(moment.device)
        return product(columns.T.contiguous(), moment).T + added * columns

    return solving.kept_inverse(inverse_from_cholesky_(factor), moment, times)


def null_space_inverse(moment: Tensor, threshold: float, weight: float, solving: Solving | None = None) -> Inverse:
    """`null_space_of` with a threshold and λ that are known beforehand."""
    return null_space_of(moment, lambda eigenvalues: (threshold, weight), solving)


def null_space_of(
    moment: Tensor, choose: Callable[[Tensor], tuple[float, float]], solving: Solving | None = None
) -> Inverse:
    """A₀⁻¹ = P / λ, P the projection onto C's eigenvectors with eigenvalues below a threshold.

    Fang et al. 2024, section 3.2. P is kept as the smaller of its basis and that of its complement. With
    ``solving.dtype`` "float32" the eigenvectors are found in float32 where `_TELLS` allows, and made orthonormal in
    float64.

    Args:
        moment: C, (in, in).
        choose: Gives the threshold and λ for C's eigenvalues, (in,) in ascending order.
        solving: Where and in which dtype they are found, and where the basis is kept; it is kept in float64.

    Raises:
        ValueError: No eigenvalue lies below the threshold, so that no key could be changed.
    """
    solving = solving or Solving()
    eigenvalues, vectors = _eigenvectors(moment, solving, DTYPES[solving.dtype])
    threshold, weight = choose(eigenvalues.double())
    if vectors.dtype is torch.float32 and float(eigenvalues[-1]) * torch.finfo(torch.float32).eps > _TELLS * threshold:
        warnings.warn(
            f"eigenvectors are found in float64: float32 would not tell eigenvalues near the threshold {threshold:.1e} "
            f"beside one of {float(eigenvalues[-1]):.1e}"
        )
        del vectors
        eigenvalues, vectors = _eigenvectors(moment, solving, torch.float64)
        threshold, weight = choose(eigenvalues)
    kept = int((eigenvalues < threshold).sum())
    if kept == 0:
        raise ValueError(
            f"nullspace_threshold: {threshold:g} lies below all eigenvalues of the second moment, the least of which "
            f"is {float(eigenvalues[0]):g}"
        )
    low = 2 * kept <= len(eigenvalues)
    basis = (vectors[:, :kept] if low else vectors[:, kept:]).to(torch.float64, copy=True)
    if vectors.dtype is not basis.dtype:
        _orthonormal_(basis)
    del vectors
    basis = solving.kept(basis, moment.device)
    rest(basis)
    rest(moment)

    def apply(keys: Tensor) -> Tensor:
        inside = basis @ (basis.T @ keys)
        rest(basis)
        return (inside if low else keys - inside) / weight

    def whole() -> Tensor:
        found = basis @ basis.T
        if not low:
            found.neg_().diagonal().add_(1)
        return found.div_(weight)

    return Inverse(apply, whole)


def _eigenvectors(moment: Tensor, solving: Solving, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Eigenvalues of C, (in,) in ascending order, and its eigenvectors as columns, (in, in)."""
    columns = filled(solving.matrix(moment, dtype), moment).T
    eigenvalues = columns.new_empty(len(columns))
    # the eigenvectors take the place of the matrix; the routine itself wants room for two more
    torch.linalg.eigh(columns, out=(eigenvalues, columns))
    return eigenvalues, columns


def _orthonormal_(basis: Tensor) -> None:
    """Make nearly orthonormal columns, (in, n), so to the square of what is missing (Björck and Bowie 1971)."""
    correction = basis.T @ basis
    correction.mul_(-0.5).diagonal().add_(1.5)
    for start in range(0, len(basis), STRIP):
        basis[start : start + STRIP] = basis[start : start + STRIP] @ correction


class KeySystem:
    """M = (A₀ + K_p K_pᵀ)⁻¹ for earlier keys K_p that only grow.

    Up to `_FEW` times the width, K_p is solved for and a factor as wide as there are keys is kept; from there on M
    itself, (in, in), which k new keys bring up to date in O(in² k).

    Args:
        inverse: A₀⁻¹.
    """

    def __init__(self, inverse: Inverse) -> None:
        self._inverse = inverse
        self._keys: Tensor | None = None  # K_p, (in, n), as given
        self._solved: Tensor | None = None  # A₀⁻¹ K_p, (in, n)
        self._factor: Tensor | None = None  # Cholesky factor of I + K_pᵀ A₀⁻¹ K_p, (n, n)
        self._matrix: Tensor | None = None  # M, (in, in), in place of the two

    def hold(self, keys: Tensor | None) -> KeySystem:
        """Make K_p the columns of ``keys``, (in, n); what is already held is not solved again."""
        count = 0 if keys is None else keys.shape[1]
        held = 0 if self._keys is None else self._keys.shape[1]
        if keys is None or count < held or (self._keys is not None and not torch.equal(keys[:, :held], self._keys)):
            self._keys = self._solved = self._factor = self._matrix = None
            held = 0
        if keys is not None and count > held:
            block = max(1, int(_SHARE * keys.shape[0]))
            for start in range(held, count, block):
                self._extend(keys, start, min(start + block, count))
        return self

    def applied(self, keys: Tensor) -> Tensor:
        """M K, (in, n)."""
        if self._matrix is not None:
            return (keys.T.contiguous() @ self._matrix).T
        result = self._inverse.apply(keys)
        if self._keys is None or self._solved is None or self._factor is None:
            return result
        return result - self._solved @ torch.cholesky_solve(self._keys.T.double() @ result, self._factor)

    def _extend(self, keys: Tensor, start: int, stop: int) -> None:
        new = keys[:, start:stop].double()
        if self._matrix is None and stop > _FEW * keys.shape[0]:
            # M takes the memory of the inverse, which is made anew should it be asked for again
            self._matrix = self._inverse.taken()
            if self._solved is not None and self._factor is not None:
                self._take_away(self._solved.T, self._factor)
            self._solved = self._factor = None
        if self._matrix is not None:
            solved = self.applied(new)
            inner = torch.eye(new.shape[1], dtype=new.dtype, device=new.device) + new.T @ solved
            self._take_away(solved.T, _cholesky(inner))
        else:
            self._grow(new)
        self._keys = keys[:, :stop]

    def _take_away(self, solved: Tensor, factor: Tensor) -> None:
        """M ← M − Sᵀ (L Lᵀ)⁻¹ S in place, for S (n, in) and a Cholesky factor L (n, n)."""
        assert self._matrix is not None
        # a triangular solve on one side alone, so that what is taken away is symmetric and M stays so
        half = torch.linalg.solve_triangular(factor, solved, upper=False)
        self._matrix.addmm_(half.T, half, alpha=-1)

    def _grow(self, keys: Tensor) -> None:
        solved = self._inverse.apply(keys)
        corner = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device) + keys.T @ solved
        if self._keys is None or self._solved is None or self._factor is None:
            self._solved, self._factor = solved, _cholesky(corner)
            return
        side = torch.linalg.solve_triangular(self._factor, self._keys.T.double() @ solved, upper=False)
        top = torch.cat([self._factor, torch.zeros_like(side)], dim=1)
        bottom = torch.cat([side.T, _cholesky(corner - side.T @ side)], dim=1)
        self._solved = torch.cat([self._solved, solved], dim=1)
        self._factor = torch.cat([top, bottom])


def condensed(parts: Sequence[Tensor]) -> Tensor:
    """Keys, (n, in) each, one under the other; or fewer with the same sum of k kᵀ, which is all that a solution needs.

    Up to `CONDENSED_AT` times their width they are handed back as they are; more of them become the rows of a square
    factor, so that their number stays bounded. However many parts there are, one decomposition is made.
    """
    width = parts[0].shape[1]
    if sum(len(keys) for keys in parts) <= CONDENSED_AT * width:
        return torch.cat(list(parts))
    total = parts[0].new_zeros(width, width, dtype=torch.float64)
    for rows in _in_blocks(parts):
        total += gram(rows)
    shift = 4 * torch.finfo(total.dtype).eps * total.diagonal().sum()
    factor, failed = torch.linalg.cholesky_ex(total + shift * torch.eye(width, dtype=total.dtype, device=total.device))
    if int(failed):
        values, vectors = torch.linalg.eigh(total)
        factor = vectors * values.clamp(min=0).sqrt()
    return factor.T.to(parts[0].dtype).contiguous()


def _in_blocks(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """The parts one under the other in blocks: products with single keys would take many times as long."""
    start = count = 0
    for stop, part in enumerate(parts, start=1):
        count += len(part)
        if count >= _BLOCK or stop == len(parts):
            yield torch.cat(list(parts[start:stop]))
            start, count = stop, 0


def least_squares_rows(system: KeySystem, keys: Tensor) -> Tensor:
    """Kᵀ (A₀ + K_p K_pᵀ + K Kᵀ)⁻¹, (n, in), for keys K (in, n)."""
    solved = system.applied(keys)
    inner = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device) + keys.T @ solved
    return torch.cholesky_solve(solved.T, _cholesky(inner))


def equality_rows(system: KeySystem, keys: Tensor, ridge: float = 0.0) -> Tensor:
    """(Kᵀ M K + αI)⁻¹ Kᵀ M, (n, in), for keys K (in, n).

    Args:
        ridge: α; keys of one batch that depend on each other need it.

    Raises:
        ValueError: The keys depend on each other and ``ridge`` does not make up for it.
    """
    solved = system.applied(keys)
    inner = keys.T @ solved
    scale = inner.diagonal().mean()
    inner = inner + ridge * torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    factor, failed = torch.linalg.cholesky_ex(inner)
    if int(failed) or float(factor.diagonal().min()) ** 2 < 1e-12 * float(scale):
        raise ValueError(f"keys: the {keys.shape[1]} keys of the batch depend on each other; set a larger ridge")
    return torch.cholesky_solve(solved.T, factor)


def _cholesky(matrix: Tensor) -> Tensor:
    return torch.linalg.cholesky((matrix + matrix.T) / 2)
