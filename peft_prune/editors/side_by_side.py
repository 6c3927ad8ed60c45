"""Experts side by side as one linear map: its key holds gate · k of each, its second moment is that of each in turn.

For Σ gate · W k = v at the edited token and least Σ tr(ΔW C ΔWᵀ), all experts together have the closed form of a dense
layer with the key (g₁k₁, g₂k₂, …) and the block-diagonal moment diag(C₁, C₂, …), exactly. MoEEdit (Gu et al. 2026,
arXiv 2602.10965) poses the problem so and descends to its solution expert by expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spectral import LowRankUpdate
from .closed_form import KeySystem


class SideBySide(KeySystem):
    """diag(M₁, M₂, …) of several modules whose keys, (in, n) each, stand one under the other.

    Args:
        systems: Of each module.
    """

    def __init__(self, systems: Sequence[KeySystem]) -> None:
        self._systems = systems

    def applied(self, keys: Tensor) -> Tensor:
        parts = keys.chunk(len(self._systems))
        return torch.cat([system.applied(part) for system, part in zip(self._systems, parts, strict=True)])


def taken_apart(
    names: Sequence[str], columns: Tensor, rows: Tensor
) -> tuple[dict[str, LowRankUpdate], dict[str, tuple[int, ...]]]:
    """The update of each module, and the requests that its factor columns belong to.

    Args:
        names: Of the modules, side by side.
        columns: B, (out, n), which all of them share.
        rows: A of all of them, (n, sum of in); those that are 0 in a module are left out of it.
    """
    if len(names) == 1:
        return {names[0]: LowRankUpdate(columns, rows)}, {names[0]: tuple(range(len(rows)))}
    updates, owners = {}, {}
    for name, part in zip(names, rows.chunk(len(names), dim=1), strict=True):
        own = part.any(dim=1).nonzero().flatten().tolist()
        if own:
            updates[name] = LowRankUpdate(columns[:, own].contiguous(), part[own].contiguous())
            owners[name] = tuple(own)
    return updates, owners
