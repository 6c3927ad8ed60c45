"""Running mean and variance of rows, as parts that are merged in order: what lifelong normalization needs of edits.

A part or a state is (2, 1 + width): the number of rows with their mean, and 0 with the sum of squares about it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def part_of(rows: Tensor) -> Tensor:
    """The part of so many rows (n, width), in float32, as a history keeps it."""
    rows = rows.double()
    mean = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
    head = torch.tensor([[float(len(rows))], [0.0]], dtype=torch.float64, device=rows.device)
    return torch.cat([head, torch.stack([mean, (rows - mean).square().sum(0)])], dim=1).float()


def merged(parts: Iterable[Tensor]) -> Tensor | None:
    """The state after these parts, float64; None where there are none.

    Chan, Golub and LeVeque 1983: of two parts, M = M₁ + M₂ + (μ₂ - μ₁)² n₁ n₂ / (n₁ + n₂).
    """
    state: Tensor | None = None
    for part in parts:
        part = part.double()
        if state is None:
            state = part.clone()
            continue
        part = part.to(state.device)
        count, more = state[0, 0], part[0, 0]
        total = count + more
        if float(more) == 0:
            continue
        moved = part[0, 1:] - state[0, 1:]
        mean = state[0, 1:] + moved * (more / total)
        squares = state[1, 1:] + part[1, 1:] + moved.square() * (count * more / total)
        head = torch.stack([total, total.new_zeros(())])[:, None]
        state = torch.cat([head, torch.stack([mean, squares])], dim=1)
    return state


def mean_and_deviation(state: Tensor) -> tuple[Tensor, Tensor]:
    """μ and the standard deviation with n - 1 in the denominator, (width,) each; 0 for a single row."""
    count = state[0, 0]
    return state[0, 1:], (state[1, 1:] / (count - 1).clamp(min=1)).sqrt()
