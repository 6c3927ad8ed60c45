"""What every benchmark shares: one row of the table, and the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measured ratio beside its goal.

    Args:
        what: What was measured.
        reference: What it is compared with, measured in the same run.
        ratio: The measured ratio, in the sense of ``at_most``.
        goal: The ratio to reach; None where none is set.
        at_most: False: ``ratio`` is how many times faster than the reference, and must be at least ``goal``.
            True: ``ratio`` is how many times the reference is spent, and must be at most ``goal``.
        measured: The measured quantity with its unit.
        referenced: The reference's quantity with its unit.
        note: What else the reader must know, such as the error made.
        holds: False where a condition beside the ratio, named in ``note``, failed.
    """

    what: str
    reference: str
    ratio: float
    goal: float | None
    at_most: bool
    measured: str
    referenced: str
    note: str = ""
    holds: bool = True

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return "no goal set" if self.holds else "not met"
        reached = self.ratio <= self.goal if self.at_most else self.ratio >= self.goal
        return "met" if reached and self.holds else "not met"

    @property
    def ratio_text(self) -> str:
        digits = 0 if self.ratio >= 100 else 1 if self.ratio >= 10 else 2
        return f"{self.ratio:,.{digits}f} x" + ("" if self.at_most else " faster")

    @property
    def goal_text(self) -> str:
        if self.goal is None:
            return "none"
        return f"{'at most' if self.at_most else 'at least'} {self.goal:,g} x"


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def processor_seconds(call: Callable[[], Any]) -> float:
    """Seconds that this process computes in one call; what else the machine does counts as far as it slows memory."""
    start = time.process_time()
    call()
    return time.process_time() - start


def alternating(calls: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each call, taken in turns so that a busy moment falls on all of them; one warm-up each."""
    for call in calls:
        call()
    rounds = [[seconds(call) for call in calls] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def in_seconds(value: float) -> str:
    return f"{value:.4f} s" if value < 1 else f"{value:.2f} s"


def in_megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
