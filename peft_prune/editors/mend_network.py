"""MEND's network: the pairs of a fact's gradient in, the pairs of its update out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Maps(nn.Module):
    """(x, δ) → (x̃, δ̃): two residual maps of low rank, shared by the layers but for a scale and a shift of each.

    It starts as the identity on normalised pairs (Mitchell et al. 2022, section 3.2 and appendix).
    """

    def __init__(self, wide: int, high: int, layers: int, rank: int) -> None:
        super().__init__()
        width = wide + high
        rank = min(rank, width)
        generator = torch.Generator().manual_seed(0)
        bound = (6 / (width + rank)) ** 0.5
        self.wide = wide
        self.inner = nn.ParameterList((torch.rand(rank, width, generator=generator) * 2 - 1) * bound for _ in range(2))
        self.outer = nn.ParameterList(torch.zeros(width, rank) for _ in range(2))
        self.bias = nn.ParameterList(torch.zeros(width) for _ in range(2))
        self.scale = nn.ParameterList(torch.ones(layers, width) for _ in range(2))
        self.shift = nn.ParameterList(torch.zeros(layers, width) for _ in range(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))
        self.count: Tensor
        self.mean: Tensor
        self.squares: Tensor

    @torch.no_grad()
    def observe(self, x: Tensor, delta: Tensor) -> None:
        """Take pairs into the running mean and variance (Welford)."""
        rows = torch.cat([x, delta], dim=1).double()
        total = self.count + len(rows)
        mean, squares = rows.mean(0), (rows - rows.mean(0)).square().sum(0)
        self.squares += squares + (mean - self.mean).square() * self.count * len(rows) / total
        self.mean += (mean - self.mean) * len(rows) / total
        self.count.copy_(total)

    def forward(self, x: Tensor, delta: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        rows = torch.cat([x, delta], dim=1)
        spread = (self.squares / (self.count - 1).clamp(min=1)).sqrt()
        rows = ((rows - self.mean) / (spread + 1e-7)).to(x.dtype)
        for index in range(2):
            change = rows @ self.inner[index].T @ self.outer[index].T + self.bias[index]
            change = change * self.scale[index][layer] + self.shift[index][layer]
            rows = rows + (change.clamp(min=0) if index == 0 else change)
        return rows[:, : self.wide], rows[:, self.wide :]


class Network(nn.Module):
    """The maps, and a step size for each layer."""

    def __init__(self, wide: int, high: int, layers: Sequence[int], rank: int, edit_lr: float) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.maps = Maps(wide, high, len(layers), rank)
        self.step_sizes = nn.Parameter(torch.full((len(layers),), edit_lr))

    def forward(self, x: Tensor, delta: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Rows x̃ (tokens, in) and -a δ̃ (tokens, out) of the update."""
        keys, values = self.maps(x, delta, layer)
        return keys, -self.step_sizes[layer] * values
