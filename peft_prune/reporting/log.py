"""A history as a report reads it: one look at the file, then plain data."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime
from typing import Any

from ..errors import HistoryError
from ..monitoring import CONDITION_GROWTH, LAYER_FIGURES, OUTPUT_PERTURBATION, LayerCondition
from ..session import EditRecord, History, Verification, state_seen
from .redaction import Redactor
from .words import edits as edits_text
from .words import listed

STATES = ("applied", "weakened", "lost", "undone", "failed", "rolled back", "rejected", "skipped")
"""What can have become of an edit, as it was seen last: those of the session, and what a guard took out again."""

CAUSES = {
    "edit": "later edits",
    "restraint": "a restraint",
    "undo": "an undo",
    "strengths": "new strengths",
    "tune": "another restraint",
    "save": "saving",
    "consolidate": "a consolidation",
    "verify": "a check",
}
"""What stood before a look at the edits, in words."""

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
        acts: Whether it changed the adapter; a look at the edits does not.
    """

    at: datetime
    batch: int
    what: str
    reason: str
    in_batch: bool
    acts: bool = True


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
        layers: By figure, one of `LAYER_FIGURES`, and by module, its values over the edits.
        measurements: By name of a probe, its values over the edits.
        alerts: Time, batch, action, source and message of each.
        changes: See `Change`.
        figures_edits: Edits asked for when the latest figures were taken.
        changed_since: Whether the adapter has been changed after that.
        verification: What the model says to edits today, where it was asked, by edit.
    """

    meta: Mapping[str, Any]
    records: Sequence[EditRecord]
    finished: Mapping[int, datetime]
    authors: Mapping[int, str]
    runs: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Mapping[str, float | None]]
    layers: Mapping[str, Mapping[str, Course]]
    measurements: Mapping[str, Course]
    alerts: Sequence[Mapping[str, Any]]
    changes: Sequence[Change]
    figures_edits: int
    changed_since: bool
    verification: Mapping[int, Verification] = field(default_factory=dict)

    @classmethod
    def of(cls, history: History, verification: Mapping[int, Verification] | None = None) -> EditLog:
        """Read a history; one that is open for reading only will do.

        Args:
            history: The history.
            verification: What the model says to edits today, by edit.

        Raises:
            HistoryError: A row is damaged.
        """
        records = history.edits()
        batches = {row["id"]: row for row in history.table("batches")}
        runs = {row["id"]: row for row in history.runs()}
        for record in records:
            if record.batch not in batches or batches[record.batch]["run"] not in runs:
                raise HistoryError(f"history: {history.path}: edit {record.id} is of a batch or run that is not there")
        within = [(record, batches[record.batch]) for record in records]
        last_edit: dict[int, int] = {}
        for record in records:
            last_edit[record.batch] = max(record.id, last_edit.get(record.batch, 0))
        events = history.events()
        changes = [_change(row, records) for row in events if row["kind"] != "alert"]
        figures = [row for row in history.table("figures") if row["batch"] in last_edit]
        measured = [row for row in history.table("measurements") if row["batch"] in last_edit]
        newest = max((row["batch"] for row in figures), default=0)
        later_edits = any(record.batch > newest and record.appended is not None for record in records)
        acting = [one for one in changes if one.acts]
        later_changes = any(one.batch >= newest and not (one.in_batch and one.batch == newest) for one in acting)
        return cls(
            meta=history.meta,
            records=records,
            finished={record.id: _time(batch["finished_at"]) for record, batch in within},
            authors={record.id: str(runs[batch["run"]]["author"]) for record, batch in within},
            runs=list(runs.values()),
            figures={row["module"]: row for row in figures if row["batch"] == newest},
            layers={
                figure: _courses(
                    (row["module"], last_edit[row["batch"]], value)
                    for row in figures
                    if (value := _layer_value(row, figure)) is not None
                )
                for figure in LAYER_FIGURES
            },
            measurements=_courses((row["name"], last_edit[row["batch"]], _number(row["value"])) for row in measured),
            alerts=[row["data"] | {"at": _time(row["at"]), "batch": row["batch"]} for row in events if _is_alert(row)],
            changes=changes,
            figures_edits=last_edit.get(newest, 0),
            changed_since=bool(newest) and (later_edits or later_changes),
            verification=verification or {},
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
        if record.status == "failed" and (record.reason or "").startswith("rolled back by "):
            return "rolled back"
        found = self.verification.get(record.id)
        if found is not None and record.has_taken and record.undone_at is None:
            return state_seen(found.holds, found.probability, record.reference)
        return record.state

    def holds(self, record: EditRecord) -> bool:
        """Whether the model gave the new answer when it was asked last."""
        found = self.verification.get(record.id)
        if found is not None:
            return found.holds
        return record.took if record.seen is None else record.seen.holds

    def states(self) -> Counter[str]:
        """How many edits are in each state."""
        return Counter(self.state(record) for record in self.records)

    @property
    def growth(self) -> Mapping[str, Course]:
        """By module, κ(W0 + ΔW) / κ(W0) over the edits."""
        return self.layers[CONDITION_GROWTH]

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


def _is_alert(row: Mapping[str, Any]) -> bool:
    return row["kind"] == "alert"


def _courses(points: Iterable[tuple[str, int, float]]) -> dict[str, Course]:
    found: dict[str, list[tuple[int, float]]] = {}
    for name, edits, value in points:
        found.setdefault(name, []).append((edits, value))
    courses = {name: sorted(own) for name, own in found.items()}
    return {name: Course(tuple(x for x, _ in own), tuple(y for _, y in own)) for name, own in courses.items()}


def _layer_value(row: Mapping[str, Any], figure: str) -> float | None:
    if figure == OUTPUT_PERTURBATION and row["output_perturbation"] is None:
        return None
    names = [one.name for one in fields(LayerCondition) if one.name not in ("edits", "rank")]
    return LayerCondition(row["edits"], row["rank"], **{name: _number(row[name]) for name in names}).value(figure)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _change(row: Mapping[str, Any], records: Sequence[EditRecord]) -> Change:
    data, kind, batch = row["data"], row["kind"], row["batch"] or 0
    reason, in_batch, acts = "", False, kind != "look"
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
    elif kind == "look":
        what = f"seen after {CAUSES.get(data['cause'], data['cause'])}: {_seen(data['edits'])}"
    elif kind == "consolidate":
        held, read = data["held"][-1], data.get("read")
        read = read if isinstance(read, int) else data["edits"]
        told = f"{held} hold" if read == data["edits"] else f"{read} of them were read, of which {held} hold"
        what = f"{data['edits']} edits consolidated in {data['steps']} steps: {told}"
    else:
        what = str(kind)
    return Change(_time(row["at"]), batch, what, reason, in_batch, acts)


def _seen(states: Mapping[str, str]) -> str:
    """Edits by their new state."""
    found: dict[str, list[int]] = {}
    for edit, state in states.items():
        found.setdefault(state, []).append(int(edit))
    said = {"applied": "hold again", "weakened": "weakened", "lost": "lost"}
    return listed([f"{edits_text(own)} {said.get(state, state)}" for state, own in found.items()])
