"""What a merge did to a weight, against what it was meant to do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SHARE = 0.5
"""Least share of ΔW that must arrive in the weight; a merge below it is undone."""

_STRIP = 2**22


@dataclass(frozen=True)
class Realised:
    """How much of ΔW arrived.

    Args:
        share: ⟨R, ΔW⟩ / ‖ΔW‖²_F, R being the weight after the merge minus the one before.
        error: ‖R − ΔW‖_F / ‖ΔW‖_F.
    """

    share: float
    error: float

    @property
    def holds(self) -> bool:
        """Whether the merge may stand."""
        return self.share >= MIN_SHARE


@torch.no_grad()
def realised(before: Tensor, after: Tensor, delta: Tensor) -> Realised:
    """Compare a weight before and after a merge with the update (all of one shape), in float64, strip by strip.

    An update of zeros is realised whatever happens to it.
    """
    rows = max(1, _STRIP // max(1, delta.shape[1]))
    square = along = off = 0.0
    for start in range(0, len(delta), rows):
        part = slice(start, start + rows)
        wanted = delta[part].double()
        found = after[part].to(wanted.device).double() - before[part].to(wanted.device).double()
        square += float((wanted * wanted).sum())
        along += float((found * wanted).sum())
        off += float((found - wanted).square().sum())
    return Realised(1.0, 0.0) if square == 0 else Realised(along / square, math.sqrt(off / square))
