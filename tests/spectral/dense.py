"""Dense float64 references for the spectral tests, written from the formulas alone."""

from __future__ import annotations

import torch
from torch import Tensor

from peft_prune.spectral import LowRankUpdate


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_update(
    out: int, inner: int, rank: int, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> LowRankUpdate:
    return LowRankUpdate(random(out, rank, seed=seed, dtype=dtype), random(rank, inner, seed=seed + 1, dtype=dtype))


def dense(update: LowRankUpdate) -> Tensor:
    return update.B.double() @ update.A.double()


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix.double())[0]) if matrix.numel() else 0.0


def matrix_with_spectrum(out: int, inner: int, values: Tensor, seed: int = 0) -> Tensor:
    """A float64 matrix with these min(out, inner) singular values and random singular vectors."""
    left = torch.linalg.qr(random(out, values.numel(), seed=seed, dtype=torch.float64))[0]
    right = torch.linalg.qr(random(inner, values.numel(), seed=seed + 1, dtype=torch.float64))[0]
    return (left * values.double()) @ right.T


SHAPES = {
    "wide": (40, 90, 12),
    "tall": (90, 40, 12),
    "square": (60, 60, 12),
    "rank 1": (40, 90, 1),
    "rank = out": (40, 90, 40),
    "rank > both": (30, 40, 55),
    "one row": (1, 50, 3),
}
