"""Figures with resamples, so that means and differences of them have intervals too.

Two figures over the same number of units are resampled with the same choices, hence paired: their difference has the
interval of a paired difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .estimates import Mean

RESAMPLES = 1000

SHARE = (0.0, 1.0)
"""What bounds a share."""

GAP = (-1.0, 1.0)
"""What bounds the difference of two shares."""


@dataclass(frozen=True)
class Draws:
    """A figure, its resamples, and how many units it is over.

    Args:
        value: The figure.
        samples: It on each resample of its units, (RESAMPLES,) float64.
        n: Number of units.
    """

    value: float
    samples: Tensor
    n: int

    @classmethod
    def of(cls, units: Sequence[Sequence[float]], figure: Callable[[Tensor], Tensor], seed: int = 0) -> Draws | None:
        """A figure of sums over units (bootstrap, Efron 1979); None without units.

        Args:
            units: A list of numbers for each unit, all of one length k.
            figure: Takes sums over units, (count, k), and gives (count,).
            seed: Of the resampling.
        """
        if not units:
            return None
        table = torch.tensor(units, dtype=torch.float64)
        sums = _picks(len(units), seed) @ table
        return cls(float(figure(table.sum(0)[None])[0]), figure(sums), len(units))

    def minus(self, other: Draws) -> Draws:
        """The difference of two figures, paired where they are over the same units."""
        return Draws(self.value - other.value, self.samples - other.samples, min(self.n, other.n))

    def mean(self, bounds: tuple[float, float] | None = None) -> Mean:
        """Value, n and the 95 % percentile interval; where nothing varies that of :meth:`Mean.unvaried`.

        Args:
            bounds: The least and the largest that the figure can be.
        """
        ordered = self.samples.sort().values
        if bool((ordered == ordered[0]).all()):
            return Mean.unvaried(self.value, self.n, bounds)
        # nearest ranks: between infinities there is nothing to interpolate
        low, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in (0.025, 0.975))
        return Mean(self.value, self.n, low, high)


@cache
def _picks(count: int, seed: int) -> Tensor:
    """How often each unit is in each resample, (RESAMPLES, count)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(count, (RESAMPLES, count), generator=generator)
    return torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(
        1, chosen, torch.ones_like(chosen, dtype=torch.float64)
    )


def average(parts: Sequence[Draws | None]) -> Draws | None:
    """The plain mean of several figures, such as of several tasks; None if one is missing."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    samples = torch.stack([part.samples for part in known]).mean(0)
    return Draws(sum(part.value for part in known) / len(known), samples, sum(part.n for part in known))


def over_seeds(parts: Sequence[Draws], *, same_units: bool = False) -> Draws:
    """The mean over seeds; seeds are resampled, and within each its units (a bootstrap in two stages).

    With three seeds the outer stage is coarse; it still keeps the spread between seeds in the interval.

    Args:
        parts: One figure for each seed.
        same_units: Whether all are over the same units, such as the same facts: more seeds do not make more of them.
    """
    table = torch.stack([part.samples for part in parts])
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(len(parts), (RESAMPLES, len(parts)), generator=generator)
    samples = table.T.gather(1, chosen).mean(1)
    units = max(part.n for part in parts) if same_units else sum(part.n for part in parts)
    return Draws(sum(part.value for part in parts) / len(parts), samples, units)


def share(sums: Tensor) -> Tensor:
    """Of (successes, trials)."""
    return sums[:, 0] / sums[:, 1]


def perplexity(sums: Tensor) -> Tensor:
    """Of (loss in nats, tokens)."""
    return (sums[:, 0] / sums[:, 1]).exp()


def harmonic(sums: Tensor) -> Tensor:
    """The harmonic mean of several shares, of (successes, trials, successes, trials, …); 0 where one is 0."""
    shares = sums[:, 0::2] / sums[:, 1::2]
    return torch.where((shares > 0).all(1), shares.shape[1] / (1 / shares.clamp(min=1e-300)).sum(1), 0.0)
