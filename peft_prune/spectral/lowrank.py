"""A low-rank update ΔW = B A, its singular value decomposition and its truncation, never forming out x in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import require_finite, require_matrix, result_dtype


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """The update ΔW = B A of a weight of shape (out, in), in the dtype in which it is stored.

    Args:
        B: Left factor, (out, r).
        A: Right factor, (r, in), of the same dtype and on the same device.

    Raises:
        ValueError: A factor is not a floating matrix, or the two do not fit together.
    """

    B: Tensor
    A: Tensor

    def __post_init__(self) -> None:
        require_matrix("B", self.B)
        require_matrix("A", self.A)
        if self.B.shape[1] != self.A.shape[0]:
            raise ValueError(
                f"B: shape {tuple(self.B.shape)} must have as many columns as A has rows, A has shape "
                f"{tuple(self.A.shape)}"
            )
        if self.B.dtype != self.A.dtype:
            raise ValueError(f"B: dtype {self.B.dtype} must be that of A, {self.A.dtype}")
        if self.B.device != self.A.device:
            raise ValueError(f"B: device {self.B.device} must be that of A, {self.A.device}")

    @staticmethod
    def zeros(
        out_features: int,
        in_features: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> LowRankUpdate:
        """The update of rank 0, which changes nothing: B of shape (out, 0) and A of shape (0, in)."""
        return LowRankUpdate(
            torch.zeros(out_features, 0, dtype=dtype, device=device),
            torch.zeros(0, in_features, dtype=dtype, device=device),
        )

    @property
    def rank(self) -> int:
        """Number of columns of B, an upper bound of the mathematical rank."""
        return self.B.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of ΔW."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of both factors."""
        return self.B.dtype

    @property
    def device(self) -> torch.device:
        """Device of both factors."""
        return self.B.device

    def append(self, other: LowRankUpdate) -> LowRankUpdate:
        """The sum of two updates, exactly: the factors side by side, this update's first.

        Raises:
            ValueError: ``other`` has another shape (out, in), dtype or device.
        """
        self._require_same_kind(other)
        return LowRankUpdate(torch.cat([self.B, other.B], dim=1), torch.cat([self.A, other.A], dim=0))

    def _require_same_kind(self, other: LowRankUpdate) -> None:
        for what in ("shape", "dtype", "device"):
            if getattr(other, what) != getattr(self, what):
                raise ValueError(f"other: {what} {getattr(other, what)} must be {getattr(self, what)}")

    def dense(self) -> Tensor:
        """ΔW itself, (out, in), in the factors' dtype."""
        return self.B @ self.A

    def to(self, *args: Any, **kwargs: Any) -> LowRankUpdate:
        """Both factors moved or cast as by ``torch.Tensor.to``."""
        return LowRankUpdate(self.B.to(*args, **kwargs), self.A.to(*args, **kwargs))

    def scaled(self, factor: float) -> LowRankUpdate:
        """The update ``factor`` · ΔW; B is multiplied, A is shared.

        Raises:
            ValueError: ``factor`` is NaN or Inf.
        """
        if not math.isfinite(factor):
            raise ValueError(f"factor: {factor} must be finite")
        return LowRankUpdate(self.B * factor, self.A)

    def balanced(self) -> LowRankUpdate:
        """The same product, exactly: columns of B and rows of A brought to about equal norms by powers of two.

        Factors of very different size would overflow, or vanish, in float16.
        """
        left, right = self.B.double().square().sum(0), self.A.double().square().sum(1)
        contributes = (left > 0) & (right > 0)
        ratio = torch.where(contributes, right, 1.0) / torch.where(contributes, left, 1.0)
        scale = torch.exp2(torch.round(torch.log2(ratio) / 4)).to(self.dtype)
        return LowRankUpdate(self.B * scale, self.A / scale[:, None])

    def singular_values(self) -> Tensor:
        """Singular values of ΔW, (min(out, in, r),), descending; at least float32.

        Raises:
            ValueError: A factor holds NaN or Inf.
        """
        return torch.linalg.svdvals(_core(self)).to(result_dtype(self.dtype))

    def spectral_norm(self) -> float:
        """Largest singular value of ΔW; 0.0 at rank 0.

        Raises:
            ValueError: A factor holds NaN or Inf.
        """
        values = torch.linalg.svdvals(_core(self))
        return float(values[0]) if values.numel() else 0.0

    def frobenius_norm(self) -> float:
        """Frobenius norm of ΔW.

        Raises:
            ValueError: A factor holds NaN or Inf.
        """
        return float(torch.linalg.vector_norm(_core(self)))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A thin singular value decomposition ΔW = U diag(s) Vh.

    Args:
        U: Left singular vectors, (out, k), orthonormal columns.
        s: Singular values, (k,), descending.
        Vh: Right singular vectors, (k, in), orthonormal rows.
    """

    U: Tensor
    s: Tensor
    Vh: Tensor

    def update(self) -> LowRankUpdate:
        """The balanced factors B = U sqrt(s), (out, k), and A = sqrt(s) Vh, (k, in)."""
        root = self.s.sqrt()
        return LowRankUpdate(self.U * root, root[:, None] * self.Vh)

    def to(self, dtype: torch.dtype) -> Spectrum:
        """The same decomposition in another dtype."""
        return Spectrum(self.U.to(dtype), self.s.to(dtype), self.Vh.to(dtype))


def reorthogonalize(update: LowRankUpdate) -> Spectrum:
    """Singular value decomposition of B A by a thin QR of B and of Aᵀ and an SVD of the small core between them.

    The work is done in float64, so that the absolute error of a singular value is about 1e-15 · ‖B‖ ‖A‖ even where
    the columns cancel; results come back in float32 (float64 for float64 factors). k = min(out, in, r). Cost:
    O((out + in) r² + r³) operations, about six times the factors' float32 bytes of memory.

    Raises:
        ValueError: A factor holds NaN or Inf.
    """
    return decompose(update).to(result_dtype(update.dtype))


@torch.no_grad()
def decompose(update: LowRankUpdate) -> Spectrum:
    """As `reorthogonalize`, but the result stays in float64 for further computation."""
    require_finite("B", update.B)
    require_finite("A", update.A)
    left, left_triangle = torch.linalg.qr(update.B.double())
    right, right_triangle = torch.linalg.qr(update.A.double().T)
    U, s, Vh = torch.linalg.svd(left_triangle @ right_triangle.T, full_matrices=False)
    return Spectrum(left @ U, s, Vh @ right.T)


def truncate(
    update: LowRankUpdate, *, rank: int | None = None, energy: float | None = None
) -> tuple[LowRankUpdate, float]:
    """The nearest update of lower rank (Eckart and Young 1936), and the error it made.

    Args:
        update: Update to truncate.
        rank: Keep at most this many singular directions.
        energy: Keep as few directions as hold this share of ‖ΔW‖_F², in (0, 1]. With both, the smaller count holds.

    Returns:
        The truncated update in balanced factors, and ‖ΔW − truncated‖_F / ‖ΔW‖_F (0.0 for ΔW = 0).

    Raises:
        ValueError: Neither limit is given, one is out of range, or a factor holds NaN or Inf.
    """
    if rank is None and energy is None:
        raise ValueError("rank: give rank, energy or both")
    if rank is not None and rank < 0:
        raise ValueError(f"rank: {rank} must be at least 0")
    spectrum = decompose(update)
    tail = _lost_energies(spectrum.s)
    total = float(tail[0])
    keep = spectrum.s.numel() if rank is None else min(rank, spectrum.s.numel())
    if energy is not None:
        keep = min(keep, energy_rank(spectrum.s, energy))
    kept = Spectrum(spectrum.U[:, :keep], spectrum.s[:keep], spectrum.Vh[:keep])
    error = math.sqrt(float(tail[keep]) / total) if total > 0 else 0.0
    return kept.update().to(result_dtype(update.dtype)), error


def energy_rank(singular_values: Tensor, energy: float) -> int:
    """Fewest leading directions that hold this share of ‖ΔW‖_F².

    Args:
        singular_values: (k,), descending.
        energy: In (0, 1].

    Raises:
        ValueError: ``energy`` is out of range.
    """
    if not 0.0 < energy <= 1.0:
        raise ValueError(f"energy: {energy} must be above 0 and at most 1")
    tail = _lost_energies(singular_values.double())
    return int((tail <= (1.0 - energy) * tail[0]).to(torch.int64).argmax())


def _lost_energies(s: Tensor) -> Tensor:
    """Σ of s² beyond the first k values, for k from 0 on, (k + 1,); summed from the small end, so nothing cancels."""
    return torch.cat([s.square().flip(0).cumsum(0).flip(0), s.new_zeros(1)])


@torch.no_grad()
def _core(update: LowRankUpdate) -> Tensor:
    """The small matrix in float64 with the singular values of ΔW: the triangle of B times the triangle of Aᵀ."""
    require_finite("B", update.B)
    require_finite("A", update.A)
    left_triangle = torch.linalg.qr(update.B.double(), mode="r").R
    right_triangle = torch.linalg.qr(update.A.double().T, mode="r").R
    return left_triangle @ right_triangle.T
