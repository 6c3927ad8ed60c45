"""Factors that are a function of ΔW alone: they tell nothing of the parts that it was summed from or their order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import result_dtype
from .lowrank import LowRankUpdate, decompose


def in_own_basis(update: LowRankUpdate) -> LowRankUpdate:
    """The same ΔW in factors that follow from ΔW = U diag(s) Vᵀ alone: B = U diag(s) Q and A = Qᵀ Vᵀ.

    Appended edits leave one row of A for each, in their order. The singular vectors know nothing of that, but where
    edits are nearly orthogonal they lie close to these rows again; Q, the orthogonal cosine transform, spreads every
    singular direction over all rows, no entry of it above 0.71 for r > 1. The rows of A are orthonormal.

    Args:
        update: Factors of any rank r.

    Returns:
        Factors of rank min(out, in, r), in the dtype and on the device of ``update``; ΔW agrees to the rounding of
        that dtype.

    Raises:
        ValueError: A factor holds NaN or Inf.
    """
    spectrum = decompose(update)
    mixing = cosine_transform(spectrum.s.numel()).to(spectrum.s)
    mixed = LowRankUpdate((spectrum.U * spectrum.s) @ mixing, mixing.T @ spectrum.Vh)
    if result_dtype(update.dtype) != update.dtype:
        mixed = mixed.balanced()  # columns of B and rows of A of very different size would overflow in float16
    return mixed.to(dtype=update.dtype)


def cosine_transform(size: int) -> Tensor:
    """The orthogonal discrete cosine transform, (size, size) float64 (Ahmed, Natarajan and Rao 1974)."""
    places = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi * (places[:, None] + 0.5) * places / max(size, 1)) * math.sqrt(2 / max(size, 1))
    matrix[:, :1] /= math.sqrt(2)
    return matrix
