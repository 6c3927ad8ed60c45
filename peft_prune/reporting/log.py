"""A history as a report reads it: one look at the file, then plain data."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from ..models.generation import answers_with
from ..session import EditRecord, History
from .redaction import Redactor

STATES = ("applied", "lost", "undone", "failed", "rolled back", "rejected", "skipped")
"""What can have become of an edit. Lost: it took, and the restraint of its own batch took it away again."""

_REPLACED = re.compile(r"replaced by edit (\d+)")


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
class Change:
    """Something that was done to the edits outside of a batch, or an edit that made way for another.

    Args:
        at: When.
        batch: The batch before it, or the one that it is part of.
        what: In words, without what a person wrote.
        reason: What a person wrote.
        in_batch: Whether the figures of its batch know of it.
    """

    at: datetime
    batch: int
    what: str
    reason: str
    in_batch: bool


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
        changes: See `Change`.
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
    changes: Sequence[Change]
    figures_edits: int
    changed_since: bool

    @classmethod
    def of(cls, history: History) -> EditLog:
        """Read a history; one that is open for reading only will do.

        Raises:
            HistoryError: A row is damaged.
        """
        records = history.edits()
        batches = {row["id"]: row for row in history.table("batches")}
        runs = {row["id"]: row for row in history.table("runs")}
        last_edit: dict[int, int] = {}
        for record in records:
            last_edit[record.batch] = max(record.id, last_edit.get(record.batch, 0))
        events = history.events()
        changes = [_change(row, records) for row in events if row["kind"] != "alert"]
        figures = [row for row in history.table("figures") if row["batch"] in last_edit]
        measured = [row for row in history.table("measurements") if row["batch"] in last_edit]
        newest = max((row["batch"] for row in figures), default=0)
        later_edits = any(record.batch > newest and record.appended is not None for record in records)
        later_changes = any(one.batch >= newest and not (one.in_batch and one.batch == newest) for one in changes)
        return cls(
            meta=history.meta,
            records=records,
            finished={record.id: _time(batches[record.batch]["finished_at"]) for record in records},
            authors={record.id: str(runs[batches[record.batch]["run"]]["author"]) for record in records},
            runs=list(runs.values()),
            figures={row["module"]: row for row in figures if row["batch"] == newest},
            growth=_courses((row["module"], last_edit[row["batch"]], _growth(row)) for row in figures),
            measurements=_courses((row["name"], last_edit[row["batch"]], _number(row["value"])) for row in measured),
            alerts=[row["data"] | {"at": _time(row["at"]), "batch": row["batch"]} for row in events if _is_alert(row)],
            changes=changes,
            figures_edits=last_edit.get(newest, 0),
            changed_since=bool(newest) and (later_edits or later_changes),
        )

    def shown_by(self, redactor: Redactor) -> EditLog:
        """The same with people, and figures that a user named, as the redactor shows them."""
        authors = {edit: redactor.code(author) for edit, author in self.authors.items()}
        return replace(
            self,
            records=[replace(one, undone_by=one.undone_by and redactor.code(one.undone_by)) for one in self.records],
            authors=authors,
            runs=[{**run, "author": redactor.code(str(run["author"]))} for run in self.runs],
            measurements={redactor.figure(name): course for name, course in self.measurements.items()},
        )

    def state(self, record: EditRecord) -> str:
        """One of `STATES`: what became of an edit."""
        if record.undone_at:
            return "undone"
        if record.status == "failed" and (record.reason or "").startswith("rolled back by "):
            return "rolled back"
        return "lost" if record.status == "applied" and not took(record) else record.status

    def states(self) -> Counter[str]:
        """How many edits are in each state."""
        return Counter(self.state(record) for record in self.records)

    @property
    def tried(self) -> list[EditRecord]:
        """Edits that were computed and looked at, apart from those that a guard took out again."""
        return [r for r in self.records if r.status in ("applied", "failed") and self.state(r) != "rolled back"]

    def by_day(self) -> dict[date, Counter[str]]:
        """States of the edits of each day, in order."""
        found: dict[date, Counter[str]] = {}
        for record in self.records:
            found.setdefault(self.finished[record.id].date(), Counter())[self.state(record)] += 1
        return dict(sorted(found.items()))

    def by_relation(self) -> dict[str, list[EditRecord]]:
        """The edits of each relation, the most frequent first."""
        found: dict[str, list[EditRecord]] = {}
        for record in self.records:
            if record.request is not None:
                found.setdefault(record.request.relation_id or record.request.prompt, []).append(record)
        return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def took(record: EditRecord) -> bool:
    """Whether the model gave the new answer when it was asked freely, once the edit's batch was done."""
    if record.status != "applied" or record.request is None:
        return False
    return record.answer_after is None or answers_with(record.answer_after, record.request.target_new)


def _is_alert(row: Mapping[str, Any]) -> bool:
    return row["kind"] == "alert"


def _courses(points: Iterable[tuple[str, int, float]]) -> dict[str, Course]:
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


def _change(row: Mapping[str, Any], records: Sequence[EditRecord]) -> Change:
    data, kind, batch = row["data"], row["kind"], row["batch"] or 0
    reason, in_batch = "", False
    if kind == "undo":
        edits = data["edits"]
        what = f"{'edit' if len(edits) == 1 else 'edits'} {', '.join(map(str, edits))} undone"
        reason = str(data["reason"])
        replaced = _REPLACED.fullmatch(reason)
        in_batch = replaced is not None and any(r.id == int(replaced[1]) and r.batch == batch for r in records)
    elif kind == "strengths":
        what = f"the strength of {len(data)} {'edit' if len(data) == 1 else 'edits'} set"
    elif kind == "tune":
        what = f"the restraint chosen anew: {', '.join(sorted(set(data['restraints'].values())))}"
    elif kind == "restrain":
        what = f"the restraint applied: {', '.join(sorted(set(data.values())))}"
    else:
        what = str(kind)
    return Change(_time(row["at"]), batch, what, reason, in_batch)
