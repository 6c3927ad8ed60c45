"""Which edits carry the large singular directions of the accumulated update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import HistoryError
from ..spectral import LowRankUpdate, reorthogonalize
from .history import History
from .replay import scaled, side_by_side


@dataclass(frozen=True)
class Attribution:
    """Shares of edits in the singular directions of one module's raw accumulated update ΔW = Σ_e B_e A_e.

    Args:
        module: The module's name in the base model.
        edits: Numbers of the edits that stand; where a batch cannot be taken apart, that of its first one.
        singular_values: Of ΔW, the largest first, (k,).
        shares: u_iᵀ B_e A_e v_i / s_i for edit e and direction i, (edits, k); every column sums to 1, and an edit that
            works against the others has a negative share.
    """

    module: str
    edits: tuple[int, ...]
    singular_values: Tensor
    shares: Tensor

    def leading(self, count: int = 10) -> list[tuple[int, float]]:
        """The edits with the largest shares in the largest singular value, of either sign, and these shares."""
        if not self.singular_values.numel():
            return []
        first = self.shares[:, 0]
        order = first.abs().argsort(descending=True)[:count].tolist()
        return [(self.edits[index], float(first[index])) for index in order]


def attribute(history: History, module: str, directions: int = 10) -> Attribution:
    """Find out which edits raise the condition number of a module.

    Args:
        history: Of the edits; one that is only read will do.
        module: The module's name in the base model.
        directions: How many singular directions are looked at.

    Raises:
        ValueError: No edit that stands changes this module.
        HistoryError: Factors are damaged.
    """
    parts: dict[int, LowRankUpdate] = {}
    for record in history.edits(standing=True):
        if record.leader == record.id:
            updates = scaled(history.factors(record.id), record.strength).updates
            if module in updates:
                parts[record.id] = updates[module]
    if not parts:
        raise ValueError(f"module: no edit that stands changes {module!r}")
    shapes = {edit: tuple(part.shape) for edit, part in parts.items()}
    if len(set(shapes.values())) > 1:
        raise HistoryError(f"history: its edits have factors of different shapes for {module!r}: {shapes}")
    spectrum = reorthogonalize(side_by_side(list(parts.values())))
    count = min(directions, int((spectrum.s > 1e-7 * spectrum.s[0]).sum()))
    left, values, right = spectrum.U[:, :count], spectrum.s[:count], spectrum.Vh[:count]
    shares = [((left.T @ part.B) * (right @ part.A.T)).sum(1) / values for part in parts.values()]
    return Attribution(module, tuple(parts), values, torch.stack(shares))
