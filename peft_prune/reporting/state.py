"""What a history amounts to: how many edits took, how far the model has come towards its limits, who carries it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..evaluation import Proportion
from ..monitoring import CONDITION_GROWTH, LAYER_FIGURES, Limit
from ..requests import EditRequest
from ..session import Attribution, EditRecord, History, attribute
from ..session.records import relation_key, subject_key
from .document import Level
from .limits import edits_left, level_of, level_with, progress
from .log import Course, EditLog
from .measured import measured_value
from .now import Now

DIRECTIONS = 12
MODULES = 3
"""Layers whose directions are taken apart; each reads the factors of all edits."""


@dataclass(frozen=True)
class Watched:
    """One limit with how far its figure has come.

    Args:
        limit: The limit.
        value: The figure, as late as it is known.
        share: Of the way from the base's value to the limit.
        left: About how many more edits reach it at the present pace, where that can be said.
        measured_at: The edit after which it was measured; None for today.
    """

    limit: Limit
    value: float
    share: float
    left: int | None
    measured_at: int | None

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
        return Proportion.of(record.took for record in self.log.tried)

    @cached_property
    def standing(self) -> int:
        """Edits whose factors are in the adapter."""
        return sum(record.stands for record in self.log.records)

    @cached_property
    def is_old(self) -> bool:
        """Whether the figures of the layers are of another adapter than the one that stands."""
        return self.now is None and self.standing > 0 and self.log.changed_since

    @cached_property
    def growth(self) -> dict[str, float]:
        """κ(W0 + ΔW) / κ(W0) of every layer, as late as it is known."""
        return self._of_layers(CONDITION_GROWTH)

    @cached_property
    def worst(self) -> str | None:
        """The layer whose condition number has grown most."""
        return max(self.growth, key=self._growth_of) if self.growth else None

    @cached_property
    def watched(self) -> list[Watched]:
        """Every limit whose figure is known, the one closest to being passed first."""
        found = [self._layer_watched(limit) for limit in self.limits if limit.figure in LAYER_FIGURES]
        found += [self._probe_watched(limit) for limit in self.limits if limit.figure not in LAYER_FIGURES]
        return sorted((one for one in found if one is not None), key=lambda one: -one.share)

    @cached_property
    def unmeasured(self) -> list[Limit]:
        """Limits whose figure has never been measured."""
        known = {one.limit.figure for one in self.watched}
        return [limit for limit in self.limits if limit.figure not in known]

    @cached_property
    def limits_level(self) -> Level:
        """Of the limit that is closest to being passed."""
        return self.watched[0].level if self.watched else "open"

    @cached_property
    def fallen(self) -> list[EditRecord]:
        """Edits whose factors are in the adapter and whose new answer the model did not give when it was asked last."""
        return [record for record in self.log.records if record.stands and not self.log.holds(record)]

    @cached_property
    def missing(self) -> list[EditRecord]:
        """Edits that were tried, or were to be, and are not in the adapter, nor is a later edit of the same fact."""
        made = {_fact(record.request): record.id for record in self.log.records if record.stands and record.request}
        open_ones = [r for r in self.log.records if self.log.state(r) in ("failed", "rolled back", "skipped")]
        return [r for r in open_ones if r.request and not r.stands and made.get(_fact(r.request), 0) < r.id]

    @cached_property
    def holds_level(self) -> Level:
        """Of what was asked for: good where all of it holds, open where there is nothing."""
        asked = self.standing + len(self.missing)
        return level_with("good" if asked else "open", len(self.fallen) + len(self.missing), asked)

    @cached_property
    def level(self) -> Level:
        """Of the limits, and of the edits: nothing is good while one that was asked for does not hold."""
        return level_with(self.limits_level, len(self.fallen) + len(self.missing), self.standing + len(self.missing))

    def shown(self, level: Level) -> Level | None:
        """The colour of a part of the whole: none is green while an edit does not hold."""
        return None if level == "good" and self.holds_level != "good" else level

    @cached_property
    def members(self) -> dict[int, list[int]]:
        """Edits that share their factors, by the one that leads."""
        found: dict[int, list[int]] = {}
        for record in self.log.records:
            if record.stands and record.leader is not None:
                found.setdefault(record.leader, []).append(record.id)
        return found

    @cached_property
    def attribution(self) -> dict[str, Attribution]:
        """Which edits carry the large directions, of the `MODULES` whose condition number has grown most."""
        names = sorted(self.growth, key=lambda name: -self._growth_of(name))
        if not names and self.members:
            names = sorted({n for edit in self._ends() for n in self.history.factors(edit).updates})
        found: dict[str, Attribution] = {}
        for name in names:
            if len(found) < MODULES and self.members:
                own = self._attributed(name)
                if own is not None and own.singular_values.numel():
                    found[name] = own
        return found

    def limits_of(self, figure: str) -> list[Limit]:
        """The limits of a figure."""
        return [one for one in self.limits if one.figure == figure]

    def sigma_max(self, module: str) -> float | None:
        """σmax(W0) of a module, where it is known."""
        if self.now is not None and module in self.now.spectra:
            return self.now.spectra[module][1]
        found = self.log.figures.get(module, {}).get("sigma_max_base")
        return None if found is None else float(found)

    def _ends(self) -> tuple[int, int]:
        leaders = list(self.members)
        return leaders[0], leaders[-1]

    def _attributed(self, module: str) -> Attribution | None:
        try:
            return attribute(self.history, module, DIRECTIONS)
        except ValueError:
            return None  # no edit that stands changes this layer

    def _layer_watched(self, limit: Limit) -> Watched | None:
        values = self._of_layers(limit.figure)
        if not values:
            return None
        worst = max(values, key=lambda name: _sortable(values[name]))
        course = self.log.layers[limit.figure].get(worst)
        at = None if self.now is not None or self.standing == 0 else self.log.figures_edits
        return self._watched(limit, values[worst], course, at)

    def _of_layers(self, figure: str) -> dict[str, float]:
        """One of `LAYER_FIGURES` of every layer, as late as it is known."""
        courses = self.log.layers[figure]
        if self.now is not None:
            values = {name: one.value(figure) for name, one in self.now.figures.items()}
            known = {name: value for name, value in values.items() if value is not None}
            if known:
                return known
        if courses and self.standing == 0:
            return dict.fromkeys(courses, LAYER_FIGURES[figure])
        return {name: course.last for name, course in courses.items()}

    def _probe_watched(self, limit: Limit) -> Watched | None:
        course = self.log.measurements.get(limit.figure)
        today = None if self.now is None else measured_value(self.now.evaluation, limit.figure)
        if today is not None:
            return self._watched(limit, today, course, None)
        return None if course is None else self._watched(limit, course.last, course, course.edits[-1])

    def _watched(self, limit: Limit, value: float, course: Course | None, at: int | None) -> Watched:
        left = None
        if course is not None and not self.is_old:
            left = edits_left(limit, course.edits, course.values)
        return Watched(limit, value, progress(limit, value), left, at)

    def _growth_of(self, module: str) -> float:
        return _sortable(self.growth.get(module, 0.0))


def _fact(request: EditRequest) -> tuple[str, str]:
    return subject_key(request), relation_key(request)


def _sortable(value: float) -> float:
    return math.inf if math.isnan(value) else value
