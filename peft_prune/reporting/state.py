"""What a history amounts to: how many edits took, how far the model has come towards its limits, who carries it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..evaluation import Proportion
from ..monitoring import CONDITION_GROWTH, Limit
from ..session import Attribution, History, attribute
from .document import Level
from .limits import edits_left, level_of, progress
from .log import Course, EditLog
from .now import Now

DIRECTIONS = 12
MODULES = 3
"""Layers whose directions are taken apart; each reads the factors of all edits."""


@dataclass(frozen=True)
class Watched:
    """One limit with how far its figure has come.

    Args:
        limit: The limit.
        value: The figure now.
        share: Of the way from the base's value to the limit.
        left: About how many more edits reach it at the present pace, where that can be said.
    """

    limit: Limit
    value: float
    share: float
    left: int | None

    @property
    def level(self) -> Level:
        """What that share is called."""
        return level_of(self.share)


@dataclass(frozen=True)
class State:
    """A history with what follows from it.

    Args:
        history: Open for reading.
        log: What it holds.
        now: The model as it is, where it was looked at.
        limits: To judge by.
    """

    history: History
    log: EditLog
    now: Now | None
    limits: Sequence[Limit]

    @cached_property
    def took(self) -> Proportion:
        """Edits that took, of those that were tried."""
        return Proportion.of(record.status == "applied" for record in self.log.tried)

    @cached_property
    def standing(self) -> int:
        """Edits whose factors are in the adapter."""
        return sum(record.stands for record in self.log.records)

    @cached_property
    def growth(self) -> dict[str, float]:
        """κ(W0 + ΔW) / κ(W0) of every layer, as late as it is known."""
        if self.now is not None:
            return {name: one.growth for name, one in self.now.figures.items()}
        return {name: course.last for name, course in self.log.growth.items()}

    @cached_property
    def worst(self) -> str | None:
        """The layer whose condition number has grown most."""
        return max(self.growth, key=self._growth_of) if self.growth else None

    @cached_property
    def watched(self) -> list[Watched]:
        """Every limit whose figure is known, the one closest to being passed first."""
        found = []
        for limit in self.limits:
            if limit.figure == CONDITION_GROWTH and self.worst is not None:
                found.append(_watched(limit, self.growth[self.worst], self.log.growth.get(self.worst)))
            elif limit.figure in self.log.measurements:
                course = self.log.measurements[limit.figure]
                found.append(_watched(limit, course.last, course))
        return sorted(found, key=lambda one: -one.share)

    @cached_property
    def level(self) -> Level:
        """Of the limit that is closest to being passed."""
        return self.watched[0].level if self.watched else "open"

    @cached_property
    def attribution(self) -> dict[str, Attribution]:
        """Which edits carry the large directions, of the `MODULES` whose condition number has grown most."""
        leaders = [record.id for record in self.history.edits(standing=True) if record.leader == record.id]
        if not leaders:
            return {}
        # an editor changes the same layers at every edit
        names = sorted(self.history.factors(leaders[-1]).updates, key=lambda name: -self._growth_of(name))
        return {name: attribute(self.history, name, DIRECTIONS) for name in names[:MODULES]}

    def limit_of(self, figure: str) -> Limit | None:
        """The limit of a figure, where there is one."""
        return next((one for one in self.limits if one.figure == figure), None)

    def sigma_max(self, module: str) -> float | None:
        """σmax(W0) of a module, where it is known."""
        if self.now is not None and module in self.now.spectra:
            return self.now.spectra[module][1]
        found = self.log.figures.get(module, {}).get("sigma_max_base")
        return None if found is None else float(found)

    def _growth_of(self, module: str) -> float:
        growth = self.growth.get(module, 0.0)
        return math.inf if math.isnan(growth) else growth


def _watched(limit: Limit, value: float, course: Course | None) -> Watched:
    left = None if course is None else edits_left(limit, course.edits, course.values)
    return Watched(limit, value, progress(limit, value), left)
