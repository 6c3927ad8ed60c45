"""Rank correlations over the points of an experiment, with intervals over its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .results import Point

LEAST_SEEDS = 3
LEAST_VARIANTS = 4


@dataclass(frozen=True)
class Correlation:
    """A rank correlation over points of an experiment, within each sequence's seed.

    The points of one seed share their edits, so they are one unit: ρ is taken within each seed, and the interval of its
    mean is Student's over the seeds.

    Args:
        predictor: Name of the figure of the layers.
        loss: Name of the ability whose loss against the base it may predict.
        rho: Mean Spearman's ρ over the seeds, over all variants and marks; None where one of the two does not vary.
        low: Lower end of the 95 % interval; None with fewer than `LEAST_SEEDS` seeds.
        high: Upper end.
        within: The same of the mean ρ over the variants at single marks, which leaves the number of edits out of play;
            None with fewer than `LEAST_VARIANTS` variants.
        within_low: Lower end of its interval.
        within_high: Upper end.
        n: Number of points.
        seeds: Number of seeds.
    """

    predictor: str
    loss: str
    rho: float | None
    low: float | None
    high: float | None
    within: float | None
    within_low: float | None
    within_high: float | None
    n: int
    seeds: int


def correlation(
    points: Sequence[Point],
    name: str,
    predictor: Callable[[Point], float],
    kind: str,
    loss: Callable[[Point], float],
) -> Correlation:
    """The rank correlation of two figures over points.

    Args:
        points: Of all seeds, variants and marks.
        name: What the predictor is called.
        predictor: Its value at a point.
        kind: What is lost.
        loss: Its value at a point.
    """
    by_seed: dict[int, list[Point]] = {}
    for point in points:
        by_seed.setdefault(point.unit.seed, []).append(point)

    def rho(own: Sequence[Point]) -> float | None:
        x, y = ([part(point) for point in own] for part in (predictor, loss))
        return spearman(torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64))

    def at_marks(own: Sequence[Point]) -> float | None:
        marks = [[point for point in own if point.edits == mark] for mark in dict.fromkeys(p.edits for p in own)]
        found = [one for group in marks if len(group) >= LEAST_VARIANTS and (one := rho(group)) is not None]
        return sum(found) / len(found) if found else None

    whole = [rho(own) for own in by_seed.values()]
    within = [at_marks(own) for own in by_seed.values()]
    return Correlation(name, kind, *over_seeds(whole), *over_seeds(within), len(points), len(by_seed))


def over_seeds(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """Mean of the seeds' correlations and Student's 95 % interval, cut off at -1 and 1.

    Not as Fisher's z, which one seed with ρ = 1 would decide alone. The mean has no value where one seed's correlation
    has none, and no interval with fewer than `LEAST_SEEDS` seeds.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None, None
    rho = torch.tensor(known, dtype=torch.float64)
    mean = float(rho.mean())
    if len(known) < LEAST_SEEDS:
        return mean, None, None
    half = student_quantile(len(known) - 1) * float(rho.std()) / math.sqrt(len(known))
    return mean, max(-1.0, mean - half), min(1.0, mean + half)


def student_quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t, by bisection on its distribution function."""
    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        if _student_cdf(middle, degrees) < 0.975:
            low = middle
        else:
            high = middle
    return high


def _student_cdf(t: float, degrees: int) -> float:
    x = torch.linspace(0, t, 20_001, dtype=torch.float64)
    constant = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    density = math.exp(constant) * (1 + x.square() / degrees).pow(-(degrees + 1) / 2)
    return 0.5 + float(torch.trapezoid(density, x))


def spearman(x: Tensor, y: Tensor) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None where one side does not vary.

    Args:
        x: Numbers, (n,).
        y: Numbers, (n,).
    """
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else None


def _ranks(x: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(x.double(), return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[inverse]
