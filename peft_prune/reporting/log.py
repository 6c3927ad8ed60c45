"""A history as a report reads it: one pass over the file, then plain data."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from ..session import EditRecord, History

STATES = ("applied", "undone", "failed", "rejected", "skipped")


@dataclass(frozen=True)
class Course:
    """A figure over the edits.

    Args:
        edits: How many edits had been asked for, ascending.
        values: The figure after each.
    """

    edits: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        """The latest value."""
        return self.values[-1]


@dataclass(frozen=True)
class EditLog:
    """What a history holds.

    Args:
        meta: Facts about the model, the editor and the restraint.
        records: All edits in order.
        finished: When the batch of each edit was written, by edit.
        authors: Who asked for each edit, by edit.
        runs: The sessions.
        figures: By module, rows of the latest figures.
        growth: By module, κ(W0 + ΔW) / κ(W0) over the edits.
        measurements: By name of a probe, its values over the edits.
        alerts: Time, batch, action, source and message of each.
        changes: Undoing, restraining, tuning and new strengths: time and what was done.
        figures_edits: Edits asked for when the latest figures were taken.
        changed_since: Whether the adapter has been changed after that.
    """

    meta: Mapping[str, Any]
    records: Sequence[EditRecord]
    finished: Mapping[int, datetime]
    authors: Mapping[int, str]
    runs: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Mapping[str, float | None]]
    growth: Mapping[str, Course]
    measurements: Mapping[str, Course]
    alerts: Sequence[Mapping[str, Any]]
    changes: Sequence[tuple[datetime, str]]
    figures_edits: int
    changed_since: bool

    @classmethod
    def of(cls, history: History) -> EditLog:
        """Read a history; one that is open for reading only will do."""
        records = history.edits()
        batches = {row["id"]: row for row in history.table("batches")}
        runs = {row["id"]: row for row in history.table("runs")}
        last_edit = {batch: max(r.id for r in records if r.batch == batch) for batch in {r.batch for r in records}}
        events = [row | {"data": json.loads(row["data"])} for row in history.table("events")]
        figures = history.table("figures")
        measured = [row for row in history.table("measurements") if row["batch"] in last_edit]
        newest = max((row["batch"] for row in figures), default=0)
        changes = [event for event in events if event["kind"] != "alert" and not _is_replacement(event)]
        when = {batch: _time(row["finished_at"]) for batch, row in batches.items()}
        return cls(
            meta=history.meta,
            records=records,
            finished={record.id: when[record.batch] for record in records},
            authors={record.id: str(runs[batches[record.batch]["run"]]["author"]) for record in records},
            runs=list(runs.values()),
            figures={row["module"]: row for row in figures if row["batch"] == newest},
            growth=_courses((row["module"], last_edit[row["batch"]], _growth(row)) for row in figures),
            measurements=_courses((row["name"], last_edit[row["batch"]], _number(row["value"])) for row in measured),
            alerts=[
                event["data"] | {"at": _time(event["at"]), "batch": event["batch"]}
                for event in events
                if event["kind"] == "alert"
            ],
            changes=[(_time(event["at"]), _said(event)) for event in changes],
            figures_edits=last_edit.get(newest, 0),
            changed_since=any(newest and (event["batch"] or 0) >= newest for event in changes),
        )

    def state(self, record: EditRecord) -> str:
        """One of `STATES`: what became of an edit."""
        return "undone" if record.undone_at else record.status

    def states(self) -> Counter[str]:
        """How many edits are in each state."""
        return Counter(self.state(record) for record in self.records)

    @property
    def tried(self) -> list[EditRecord]:
        """Edits that were computed, whether they took or not."""
        return [record for record in self.records if record.status in ("applied", "failed")]

    def by_day(self) -> dict[date, Counter[str]]:
        """States of the edits of each day, in order."""
        found: dict[date, Counter[str]] = {}
        for record in self.records:
            found.setdefault(self.finished[record.id].date(), Counter())[self.state(record)] += 1
        return dict(sorted(found.items()))

    def by_relation(self) -> dict[str, Counter[str]]:
        """States of the edits of each relation, the most frequent first."""
        found: dict[str, Counter[str]] = {}
        for record in self.records:
            if record.request is not None:
                name = record.request.relation_id or record.request.prompt
                found.setdefault(name, Counter())[self.state(record)] += 1
        return dict(sorted(found.items(), key=lambda item: (-sum(item[1].values()), item[0])))


def _courses(points: Any) -> dict[str, Course]:
    found: dict[str, list[tuple[int, float]]] = {}
    for name, edits, value in points:
        found.setdefault(name, []).append((edits, value))
    courses = {name: sorted(own) for name, own in found.items()}
    return {name: Course(tuple(x for x, _ in own), tuple(y for _, y in own)) for name, own in courses.items()}


def _growth(row: Mapping[str, Any]) -> float:
    base, edited = _number(row["condition_number_base"]), _number(row["condition_number"])
    return 1.0 if math.isinf(base) else edited / base


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _is_replacement(event: Mapping[str, Any]) -> bool:
    """Whether an edit made way for another of its own batch's, whose figures know of it."""
    return event["kind"] == "undo" and str(event["data"]["reason"]).startswith("replaced by edit ")


def _said(event: Mapping[str, Any]) -> str:
    data = event["data"]
    if event["kind"] == "undo":
        return f"edits {', '.join(map(str, data['edits']))} undone: {data['reason']}"
    if event["kind"] == "strengths":
        return f"the strength of {len(data)} edits set"
    if event["kind"] == "tune":
        return f"the restraint chosen anew: {', '.join(sorted(set(data['restraints'].values())))}"
    if event["kind"] == "restrain":
        return f"the restraint applied: {', '.join(sorted(set(data.values())))}"
    return str(event["kind"])
