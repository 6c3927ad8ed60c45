"""Two updates of one weight beside each other: how large, how alike, and in which directions they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .accumulation import accumulated
from .checks import result_dtype
from .lowrank import LowRankUpdate, Spectrum, decompose


@dataclass(frozen=True, eq=False)
class Comparison:
    """What two updates ΔW₁ and ΔW₂ of one weight, (out, in), have in common.

    Args:
        ranks: Number of directions of each that are not rounding.
        norms: ‖ΔW₁‖_F and ‖ΔW₂‖_F.
        difference: ‖ΔW₁ − ΔW₂‖_F.
        cosine: ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖_F ‖ΔW₂‖_F); 0 where one is 0.
        outputs: Cosines of the principal angles between their column spaces, (min of the ranks,), descending: 1 is a
            direction of outputs that both write to (Björck and Golub 1973).
        inputs: The same of their row spaces, the directions of inputs, in which keys lie.
        shared: Share of ‖ΔW₁‖_F² that lies in the directions of ΔW₂ on both sides, and of ‖ΔW₂‖_F² in those of ΔW₁.
    """

    ranks: tuple[int, int]
    norms: tuple[float, float]
    difference: float
    cosine: float
    outputs: Tensor
    inputs: Tensor
    shared: tuple[float, float]


@torch.no_grad()
def compare_updates(one: LowRankUpdate, other: LowRankUpdate) -> Comparison:
    """Compare two updates without forming out x in: O((out + in) r²) operations, in float64.

    Raises:
        ValueError: They have different shapes (out, in), or a factor holds NaN or Inf.
    """
    if one.shape != other.shape:
        raise ValueError(f"other: shape {other.shape} must be {one.shape}")
    first, second = _directions(one), _directions(other)
    left, right = first.U.T @ second.U, first.Vh @ second.Vh.T
    norms = float(torch.linalg.vector_norm(first.s)), float(torch.linalg.vector_norm(second.s))
    inner = float(first.s @ (left * right) @ second.s)
    # P ΔW₁ Q with P and Q the projections onto the directions of ΔW₂
    inside = (left.T * first.s) @ right, (left * second.s) @ right.T
    both = all(norm > 0 for norm in norms)
    return Comparison(
        ranks=(first.s.numel(), second.s.numel()),
        norms=norms,
        difference=_difference(first, second),
        cosine=inner / (norms[0] * norms[1]) if both else 0.0,
        outputs=torch.linalg.svdvals(left).clamp(max=1.0),
        inputs=torch.linalg.svdvals(right).clamp(max=1.0),
        shared=tuple(
            min(float(torch.linalg.vector_norm(part)) / norm, 1.0) ** 2 if both else 0.0
            for part, norm in zip(inside, norms, strict=True)
        ),  # type: ignore[arg-type]
    )


@torch.no_grad()
def weighted_sum(updates: Sequence[LowRankUpdate], weights: Sequence[float]) -> LowRankUpdate:
    """Σ w ΔW, exactly, up to the rank min(out, in) of the weight; updates of weight 0 are left out.

    Args:
        updates: At least one; all of one shape.
        weights: One for each, finite.

    Raises:
        ValueError: The shapes differ, or there are not as many weights as updates.
    """
    if len(weights) != len(updates) or not updates:
        raise ValueError(f"weights: {len(weights)} for {len(updates)} updates; one for each of at least one")
    dtype = reduce(torch.promote_types, [update.dtype for update in updates])
    device = updates[0].device
    parts = [
        update.to(device=device, dtype=dtype).scaled(weight)
        for update, weight in zip(updates, weights, strict=True)
        if weight != 0
    ]
    return reduce(accumulated, parts, LowRankUpdate.zeros(*updates[0].shape, dtype=dtype, device=device))


@torch.no_grad()
def reduced(update: LowRankUpdate) -> LowRankUpdate:
    """The same update in as few directions as it has, where parts of it cancel; as it is where none do."""
    found = _directions(update)
    return found.update().to(update.dtype) if found.s.numel() < update.rank else update


def _directions(update: LowRankUpdate) -> Spectrum:
    """The decomposition in float64, without directions that are rounding of the factors' dtype."""
    spectrum = decompose(update)
    if not spectrum.s.numel():
        return spectrum
    # at most the rounding of a sum over the longer side, of factors whose norms multiply to this
    size = float(torch.linalg.matrix_norm(update.B.double()) * torch.linalg.matrix_norm(update.A.double()))
    noise = torch.finfo(result_dtype(update.dtype)).eps * max(size, float(spectrum.s[0]))
    keep = int((spectrum.s > noise).sum())
    return Spectrum(spectrum.U[:, :keep], spectrum.s[:keep], spectrum.Vh[:keep])


def _difference(first: Spectrum, second: Spectrum) -> float:
    factors = torch.cat([first.U * first.s, -second.U * second.s], dim=1), torch.cat([first.Vh, second.Vh])
    return LowRankUpdate(*factors).frobenius_norm()
