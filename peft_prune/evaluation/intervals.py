"""Confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Z_95 = 1.959963984540054


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927, equation for p between its two roots).

    It holds for small n and for proportions near 0 and 1, where the normal approximation does not. The trials count
    as independent; for those that hang together give the effective numbers, see ``Proportion.of_clusters``.

    Args:
        successes: How many trials succeeded.
        n: Number of trials; 0 tells nothing and gives (0, 1).

    Raises:
        ValueError: ``successes`` is not between 0 and ``n``.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes: {successes} must lie between 0 and n = {n}")
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z_95 * Z_95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # at 0 and n the bound is exact, and rounding must not push it past the share itself
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def unvaried_interval(value: float, n: int, bounds: tuple[float, float]) -> tuple[float, float]:
    """The 95 % interval of a mean over n independent units that all gave ``value``, which no resampling can vary.

    Wilson's bound on the share of units that would have given another value, each of them at the far end of
    ``bounds``; for successes that is Wilson's interval itself.

    Args:
        value: What every unit gave.
        n: Number of units, at least 1.
        bounds: The least and the largest that a unit can give.
    """
    share = wilson_interval(0, n)[1]
    return value - share * (value - bounds[0]), value + share * (bounds[1] - value)


def bootstrap_interval(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a mean (Efron 1979); the same for the same seed.

    Args:
        values: One number for each independent unit; at least one.
        resamples: Number of samples drawn with replacement.
        seed: Seed of a generator of its own, so that the global random state stays as it is.

    Raises:
        ValueError: ``values`` is empty, or ``resamples`` is below 1.
    """
    if not len(values):
        raise ValueError("values: is empty, at least one number is needed")
    if resamples < 1:
        raise ValueError(f"resamples: {resamples} must be at least 1")
    sample = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [sample[torch.randint(len(sample), (len(sample),), generator=generator)].mean() for _ in range(resamples)]
    )
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
