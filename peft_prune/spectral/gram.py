"""The spectrum of B A from the Gram matrices BᵀB and A Aᵀ: the fast road, and the numbers that say when it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .lowrank import LowRankUpdate

_STRIP = 2048
_BLOCK = 256
_POWER_STEPS = 12


@dataclass(frozen=True, eq=False)
class GramSpectrum:
    """Singular values of B A with what is needed to shrink them, all in float64, from the Gram matrices alone.

    The columns are first brought to equal norms by powers of two d: B' = B diag(d), A' = diag(1/d) A. With
    B'ᵀB' = L Lᵀ the eigenvectors y of Lᵀ (A'A'ᵀ) L belong to s², and v = A'ᵀ L y / s, u = B' A' v / s are the singular
    vectors. No factor is inverted. The absolute error of s² is about 1e-16 · ``norm_left``² ``norm_right``².

    Args:
        scale: The powers of two d, (r,).
        left: Gram matrix of B', (r, r).
        right: Gram matrix of A', (r, r).
        root: L, (r, r), a Cholesky factor where there is one.
        s: Singular values, (r,), descending.
        vectors: Eigenvectors y as columns, (r, r).
        norm_left: Estimate of ‖B'‖₂.
        norm_right: Estimate of ‖A'‖₂.
    """

    scale: Tensor
    left: Tensor
    right: Tensor
    root: Tensor
    s: Tensor
    vectors: Tensor
    norm_left: float
    norm_right: float

    def mixing(self, s_new: Tensor, count: int) -> Tensor:
        """M', (r, r), such that B' M' A' is ΔW with its first ``count`` singular values replaced by ``s_new``."""
        left, right = self.mixing_factors(s_new, count)
        identity = torch.eye(self.scale.numel(), dtype=left.dtype, device=left.device)
        return torch.addmm(identity, left, right.T, alpha=-1)

    def mixing_factors(self, s_new: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """I - M' as factors, (r, count) and (r, count), the second to be transposed."""
        s = self.s[:count]
        z = self.root @ self.vectors[:, :count]
        return (self.right @ z) * ((s - s_new[:count]) / s.pow(3)), z

    def uniform(self, s_new: Tensor) -> Tensor:
        """M', (r, r), such that B' M' A' is ΔW scaled so that its largest singular value becomes ``s_new[0]``."""
        return torch.eye(self.s.numel(), dtype=self.s.dtype, device=self.s.device) * (s_new[0] / self.s[0])

    def unscaled(self, mixing: Tensor) -> Tensor:
        """M of the factors as given, so that B M A = B' M' A'."""
        return self.scale[:, None] * mixing / self.scale

    def norm_left_after(self, mixing: Tensor) -> float:
        """Estimate of ‖B' M'‖₂, which with ‖A'‖₂ bounds the rounding of the new factors."""
        return spectral_norm_estimate(lambda x: mixing.T @ (self.left @ (mixing @ x)), mixing) ** 0.5

    def norm_right_after(self, mixing: Tensor) -> float:
        """Estimate of ‖M' A'‖₂."""
        return spectral_norm_estimate(lambda x: mixing @ (self.right @ (mixing.T @ x)), mixing) ** 0.5


def gram_spectrum(update: LowRankUpdate) -> GramSpectrum:
    """Singular values of ΔW from two Gram matrices, one Cholesky factor and one symmetric eigenproblem of size r.

    Raises:
        ValueError: A factor holds NaN or Inf.
    """
    left, right = gram(update.B), gram(update.A.T)
    _require_finite_gram("B", left)
    _require_finite_gram("A", right)
    left, right, scale = _equal_norms(left, right)
    root = _root(left)
    values, vectors = torch.linalg.eigh(root.T @ right @ root)
    return GramSpectrum(
        scale,
        left,
        right,
        root,
        values.flip(0).clamp(min=0).sqrt(),
        vectors.flip(1),
        spectral_norm_estimate(lambda x: left @ x, left) ** 0.5,
        spectral_norm_estimate(lambda x: right @ x, right) ** 0.5,
    )


def gram(columns: Tensor) -> Tensor:
    """XᵀX in float64 for X of shape (n, r), strip by strip so that no float64 copy of X is ever whole."""
    rank = columns.shape[1]
    total = torch.zeros(rank, rank, dtype=torch.float64, device=columns.device)
    for strip in in_float64(columns):
        add_lower_gram(total, strip)
    return total.tril() + total.tril(-1).T


def add_lower_gram(total: Tensor, strip: Tensor) -> None:
    """Add SᵀS of a float64 strip S, (rows, r), to ``total``, (r, r); what stands above its diagonal means nothing."""
    rank = total.shape[0]
    blocks = [slice(start, min(start + _BLOCK, rank)) for start in range(0, rank, _BLOCK)]
    for i, rows in enumerate(blocks):
        for cols in blocks[: i + 1]:
            total[rows, cols].addmm_(strip[:, rows].T, strip[:, cols])


def in_float64(columns: Tensor) -> Iterator[Tensor]:
    """The strips of X, (n, r), in float64, one after the other in the same buffer; of X itself where it is float64."""
    if columns.dtype == torch.float64:
        yield from columns.split(_STRIP)
        return
    buffer = torch.empty_like(columns[:_STRIP], dtype=torch.float64)
    for start in range(0, columns.shape[0], _STRIP):
        strip = columns[start : start + _STRIP]
        yield buffer[: strip.shape[0]].copy_(strip)


def multiply_right(columns: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """X @ matrix, (n, k), accumulated in float64 and rounded once to ``dtype``."""
    result = columns.new_empty(columns.shape[0], matrix.shape[1], dtype=dtype)
    done = 0
    for strip in in_float64(columns):
        result[done : done + strip.shape[0]] = strip @ matrix
        done += strip.shape[0]
    return result


def spectral_norm_estimate(apply: Callable[[Tensor], Tensor], like: Tensor, steps: int = _POWER_STEPS) -> float:
    """A lower estimate, by a few power steps, of the largest eigenvalue of a positive semidefinite operator."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(like.shape[0], generator=generator, dtype=torch.float64).to(like.device)
    value = 0.0
    for _ in range(steps):
        x = apply(x / torch.linalg.vector_norm(x))
        value = float(torch.linalg.vector_norm(x))
        if value == 0.0:
            break
    return value


def _root(matrix: Tensor) -> Tensor:
    """L with L Lᵀ = ``matrix``, positive semidefinite up to rounding, to an error of that size."""
    # Duplicated or zero columns make a Gram matrix singular; a shift of its rounding error mostly keeps L real.
    shift = 4 * torch.finfo(matrix.dtype).eps * matrix.diagonal().sum() + torch.finfo(matrix.dtype).tiny
    root, failed = torch.linalg.cholesky_ex(
        matrix + shift * torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    )
    if int(failed) == 0:
        return root
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt()


def _equal_norms(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The Gram matrices of B diag(d) and diag(1/d) A, and the powers of two d that give both about one norm."""
    contributes = (left.diagonal() > 0) & (right.diagonal() > 0)
    ratio = torch.where(contributes, right.diagonal(), 1.0) / torch.where(contributes, left.diagonal(), 1.0)
    scale = torch.exp2(torch.round(torch.log2(ratio) / 4))
    # A column whose partner is zero adds nothing to B A, and must not set the size of the Gram matrix.
    mask = contributes.to(left.dtype)
    left = (scale * mask)[:, None] * left * scale * mask
    right = (mask / scale)[:, None] * right / scale * mask
    return left, right, scale


def _require_finite_gram(name: str, matrix: Tensor) -> None:
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name}: holds NaN, Inf or values whose squares overflow float64, all must be finite")
