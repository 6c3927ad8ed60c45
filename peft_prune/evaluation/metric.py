"""A figure that never stands without its n and its interval."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .intervals import bootstrap_interval, wilson_interval


@dataclass(frozen=True)
class Proportion:
    """A share of trials that succeeded; higher is better.

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

    def to_json(self) -> dict[str, float | int | None]:
        """``{"value", "n", "low", "high"}``."""
        return {"value": self.value, "n": self.n, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Mean:
    """A mean over independent units, in their own scale.

    Args:
        value: The mean, or None where there was nothing to count.
        n: Number of units.
        low: Lower end of the 95 % bootstrap interval; None with ``value``.
        high: Upper end; None with ``value``.
    """

    value: float | None
    n: int
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        """The mean of ``values``, one for each unit."""
        counted = [float(value) for value in values]
        if not counted:
            return cls(None, 0, None, None)
        return cls(sum(counted) / len(counted), len(counted), *bootstrap_interval(counted))

    def to_json(self) -> dict[str, float | int | None]:
        """``{"value", "n", "low", "high"}``."""
        return {"value": self.value, "n": self.n, "low": self.low, "high": self.high}
