"""A figure that never stands without its n and its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .intervals import bootstrap_interval, unvaried_interval, wilson_interval


@dataclass(frozen=True)
class Proportion:
    """A share of trials that succeeded.

    Args:
        value: The share, or None where there was nothing to count.
        n: Number of trials.
        low: Lower end of the 95 % Wilson interval; None with ``value``.
        high: Upper end; None with ``value``.
    """

    value: float | None
    n: int
    low: float | None
    high: float | None

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Proportion:
        """The share of true values among ``outcomes``."""
        counted = [bool(outcome) for outcome in outcomes]
        if not counted:
            return cls(None, 0, None, None)
        low, high = wilson_interval(sum(counted), len(counted))
        return cls(sum(counted) / len(counted), len(counted), low, high)

    @classmethod
    def of_clusters(cls, outcomes: Iterable[Sequence[float]]) -> Proportion:
        """The share of successes (1) among trials that hang together, such as the prompts of one request.

        The interval is Wilson's with the effective number of trials n / deff (Kish 1965), where the design effect deff
        is the variance of the share over the clusters against that of independent trials, and at least 1. Where all
        trials ended alike nothing tells how far they hang together, and each cluster counts as one trial.

        Args:
            outcomes: For each cluster its trials, 1 for a success.
        """
        clusters = [own for own in outcomes if len(own)]
        plain = cls.of(hit == 1 for own in clusters for hit in own)
        effect = _design_effect([(sum(hit == 1 for hit in own), len(own)) for own in clusters])
        if plain.value is None or effect == 1:
            return plain
        low, high = wilson_interval(plain.value * plain.n / effect, plain.n / effect)
        return cls(plain.value, plain.n, low, high)

    def to_json(self) -> dict[str, float | int | None]:
        """``{"value", "n", "low", "high"}``."""
        return {"value": self.value, "n": self.n, "low": self.low, "high": self.high}


def _design_effect(clusters: Sequence[tuple[int, int]]) -> float:
    """Variance of a share over clusters of (successes, trials), as a ratio estimator, over that of single trials."""
    trials = sum(own for _, own in clusters)
    share = sum(hits for hits, _ in clusters) / trials if trials else 0.0
    if trials and share in (0.0, 1.0):
        return trials / len(clusters)
    if len(clusters) < 2:
        return 1.0
    spread = sum((hits - share * own) ** 2 for hits, own in clusters) * len(clusters) / (len(clusters) - 1)
    effect = (spread / trials**2) / (share * (1 - share) / (trials - 1))
    return effect if effect > 1 + 1e-9 else 1.0  # single trials give 1 but for rounding


@dataclass(frozen=True)
class Mean:
    """A mean over independent units, in their own scale.

    Args:
        value: The mean, or None where there was nothing to count.
        n: Number of units.
        low: Lower end of the 95 % bootstrap interval, or of :func:`~peft_prune.evaluation.unvaried_interval` where
            nothing varies; None with ``value``, and where nothing varies and nothing bounds it.
        high: Upper end; None with ``low``.
    """

    value: float | None
    n: int
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Iterable[float], bounds: tuple[float, float] | None = None) -> Mean:
        """The mean of ``values``, one for each unit; ``bounds`` are the least and the largest that one can be."""
        counted = [float(value) for value in values]
        if not counted:
            return cls(None, 0, None, None)
        mean = sum(counted) / len(counted)
        if len(set(counted)) == 1:
            return cls.unvaried(counted[0], len(counted), bounds)
        return cls(mean, len(counted), *bootstrap_interval(counted))

    @classmethod
    def unvaried(cls, value: float, n: int, bounds: tuple[float, float] | None) -> Mean:
        """The mean of n units that all gave ``value``."""
        return cls(value, n, None, None) if bounds is None else cls(value, n, *unvaried_interval(value, n, bounds))

    def to_json(self) -> dict[str, float | int | None]:
        """``{"value", "n", "low", "high"}``."""
        return {"value": self.value, "n": self.n, "low": self.low, "high": self.high}
