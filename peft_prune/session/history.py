"""The history: one SQLite file with every edit ever asked for, its factors, its result, and what became of it."""

from __future__ import annotations

import getpass
import json
import math
import os
import platform
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..errors import HistoryError, HistoryLockedError
from ..monitoring import Alert, LayerCondition
from ..requests import EditRequest
from ..spectral import LowRankUpdate

FORMAT = "1"
PACKAGES = ("peft-prune", "torch", "transformers", "peft", "accelerate")

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, opened_at TEXT NOT NULL, author TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    versions TEXT NOT NULL
);
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs, finished_at TEXT NOT NULL, seconds REAL NOT NULL
);
CREATE TABLE edits (
    id INTEGER PRIMARY KEY, batch INTEGER NOT NULL REFERENCES batches, request TEXT NOT NULL, subject TEXT NOT NULL,
    relation TEXT NOT NULL, target TEXT NOT NULL, status TEXT NOT NULL, reason TEXT, stronger TEXT,
    probability_before REAL, probability_after REAL, answer_before TEXT, answer_after TEXT,
    appended INTEGER, leader INTEGER, strength REAL NOT NULL DEFAULT 1.0,
    undone_at TEXT, undone_by TEXT, undone_reason TEXT
);
CREATE INDEX edits_by_subject ON edits (subject, relation);
CREATE INDEX edits_by_batch ON edits (batch);
CREATE TABLE factors (edit INTEGER PRIMARY KEY REFERENCES edits, data BLOB NOT NULL);
CREATE TABLE restraints (
    id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, at TEXT NOT NULL, module TEXT NOT NULL, restraint TEXT NOT NULL
);
CREATE TABLE figures (
    batch INTEGER NOT NULL REFERENCES batches, module TEXT NOT NULL, edits INTEGER, rank INTEGER,
    sigma_max_base REAL, delta_spectral_norm REAL, delta_frobenius_norm REAL, condition_number_base REAL,
    condition_number REAL, perturbation_bound REAL, output_perturbation REAL, energy_top REAL, energy_bottom REAL,
    PRIMARY KEY (batch, module)
);
CREATE TABLE measurements (batch INTEGER NOT NULL REFERENCES batches, name TEXT NOT NULL, value REAL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, run INTEGER, batch INTEGER, kind TEXT NOT NULL, data TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Factors:
    """What one edit added: updates B (out, k), A (k, in) and keys (1, in) by module name, float32."""

    updates: Mapping[str, LowRankUpdate]
    keys: Mapping[str, Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Both as safetensors."""
        tensors: dict[str, Tensor] = {}
        for name, update in self.updates.items():
            tensors |= {f"{name}.B": update.B, f"{name}.A": update.A}
        tensors |= {f"{name}.key": key for name, key in self.keys.items()}
        return save_tensors({name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Factors:
        """What `to_bytes` wrote."""
        tensors = load_tensors(data)
        names = sorted({name[:-2] for name in tensors if name.endswith(".B")})
        updates = {name: LowRankUpdate(tensors[f"{name}.B"], tensors[f"{name}.A"]) for name in names}
        return cls(updates, {name[:-4]: tensor for name, tensor in tensors.items() if name.endswith(".key")})


@dataclass(frozen=True)
class EditRecord:
    """One edit as the history knows it.

    Args:
        id: Its number; the first is 1.
        batch: The batch it was tried in.
        request: The request; None where what was asked for was no valid request.
        status: "applied", "failed", "rejected" or "skipped".
        reason: Why it was not applied, in one line.
        stronger: The stronger setting that it was retried with, where it was.
        probability_before: Of the target on the bare prompt, before; the geometric mean over its tokens.
        probability_after: The same after the batch and its restraint.
        answer_before: Greedy answer to the bare prompt before.
        answer_after: The same after.
        appended: Which addition to the factors holds it; None where nothing was added.
        leader: The edit whose row holds its factors: its own id, or another's where a batch cannot be taken apart.
        strength: What its factors are multiplied with.
        undone_at: When it was undone, or None.
        undone_by: Who undid it.
        undone_reason: Why.
    """

    id: int
    batch: int
    request: EditRequest | None
    status: str
    reason: str | None = None
    stronger: str | None = None
    probability_before: float | None = None
    probability_after: float | None = None
    answer_before: str | None = None
    answer_after: str | None = None
    appended: int | None = None
    leader: int | None = None
    strength: float = 1.0
    undone_at: str | None = None
    undone_by: str | None = None
    undone_reason: str | None = None

    @property
    def stands(self) -> bool:
        """Whether its factors are in the adapter."""
        return self.appended is not None and self.undone_at is None


@dataclass(frozen=True)
class RestraintRecord:
    """The restraint acted on a module after a batch."""

    batch: int
    module: str
    restraint: str


@dataclass(frozen=True)
class BatchRecord:
    """Everything of one batch that is written in one transaction.

    Args:
        id: Its number.
        seconds: What it took.
        edits: All of them, whatever became of them.
        raw: What was asked for, as JSON, for those that were no valid request; by edit id.
        factors: By the id of the leading edit.
        restraints: Modules that the restraint acted on, and its word.
        figures: By module.
        measurements: Of probes, by name.
        alerts: Of callbacks.
        undone: Edits that this batch replaced, by id, with the reason.
    """

    id: int
    seconds: float
    edits: Sequence[EditRecord]
    raw: Mapping[int, str] = field(default_factory=dict)
    factors: Mapping[int, Factors] = field(default_factory=dict)
    restraints: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, LayerCondition] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)
    alerts: Sequence[Alert] = ()
    undone: Mapping[int, str] = field(default_factory=dict)


class History:
    """One SQLite file; a process that writes holds it alone, others may read meanwhile.

    It is in WAL mode, and every batch is one transaction: a process that is killed loses at most the batch in flight.

    Use `create`, `open` or `read`; close it, or use it as a context.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None, lock: FileLock | None, author: str) -> None:
        self._connection = connection
        self._lock = lock
        self.path = path
        self.author = author
        self.run: int | None = None

    @classmethod
    def create(cls, path: str | Path | None, meta: Mapping[str, Any], author: str | None = None) -> History:
        """A new history; None keeps it in memory.

        Args:
            path: The file; it must not exist.
            meta: Facts about the model, the editor and the restraint, kept as JSON.
            author: Who edits; the user of this process if not given.

        Raises:
            HistoryError: The file exists, or cannot be written.
            HistoryLockedError: Another process writes it.
        """
        if path is not None and Path(path).exists():
            raise HistoryError(f"history: {path} exists; use EditSession.resume to go on with it, or another name")
        history = cls._writable(path, author)
        with history._transaction():
            for statement in _SCHEMA.split(";"):
                history._execute(statement)
            history._write_meta({"format": FORMAT, **meta})
            history._begin_run()
        return history

    @classmethod
    def open(cls, path: str | Path, author: str | None = None) -> History:
        """An existing history, to go on with it.

        Raises:
            HistoryError: The file is missing, damaged, read-only, or of another format.
            HistoryLockedError: Another process writes it.
        """
        if not Path(path).is_file():
            raise HistoryError(f"history: {path} does not exist")
        history = cls._writable(path, author)
        try:
            history._check_format()
            with history._transaction():
                history._begin_run()
        except BaseException:
            history.close()
            raise
        return history

    @classmethod
    def read(cls, path: str | Path) -> History:
        """An existing history, to read it only; also while a session writes it.

        Raises:
            HistoryError: The file is missing, damaged, or of another format.
        """
        if not Path(path).is_file():
            raise HistoryError(f"history: {path} does not exist")
        found = Path(path).resolve()
        # SQLite wants to put files beside a WAL database even to read it; where it cannot, nobody writes either
        sealed = not os.access(found.parent, os.W_OK) and not Path(f"{found}-wal").exists()
        uri = found.as_uri() + ("?immutable=1" if sealed else "?mode=ro")
        with _named(path):
            connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        history = cls(connection, Path(path), None, "")
        history._check_format()
        return history

    def close(self) -> None:
        """Give the file free for others."""
        self._connection.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def meta(self) -> dict[str, Any]:
        """Facts about the model, the editor and the restraint."""
        return {key: json.loads(value) for key, value in self._execute("SELECT key, value FROM meta")}

    def update_meta(self, **facts: Any) -> None:
        """Change some of them."""
        with self._transaction():
            self._write_meta(facts)

    def record(self, batch: BatchRecord) -> None:
        """Write a batch, in one transaction.

        Raises:
            HistoryError: It cannot be written, because the disk is full for instance; nothing of it is.
        """
        with self._transaction():
            self._execute("INSERT INTO batches VALUES (?, ?, ?, ?)", (batch.id, self.run, _now(), batch.seconds))
            for edit in batch.edits:
                self._insert_edit(edit, batch.raw.get(edit.id))
            for edit_id, factors in batch.factors.items():
                self._execute("INSERT INTO factors VALUES (?, ?)", (edit_id, factors.to_bytes()))
            self._insert_restraints(batch.id, batch.restraints)
            for module, figures in batch.figures.items():
                values = [None if v is None or math.isnan(v) else v for v in asdict(figures).values()]
                self._execute(f"INSERT INTO figures VALUES (?, ?, {_marks(len(values))})", (batch.id, module, *values))
            for name, value in batch.measurements.items():
                self._execute("INSERT INTO measurements VALUES (?, ?, ?)", (batch.id, name, value))
            for alert in batch.alerts:
                self._event("alert", asdict(alert), batch.id)
            for edit_id, reason in batch.undone.items():
                self._mark_undone([edit_id], reason)

    def record_undo(self, edits: Sequence[int], reason: str) -> None:
        """Mark edits as undone."""
        with self._transaction():
            self._mark_undone(edits, reason)

    def record_restraint(self, restraints: Mapping[str, str]) -> None:
        """Note that the restraint acted on these modules, after the last batch."""
        with self._transaction():
            self._insert_restraints(self.last_batch, restraints)
            self._event("restrain", dict(restraints), self.last_batch)

    def record_strengths(self, strengths: Mapping[int, float], restraints: Mapping[str, str]) -> None:
        """Set the strengths of edits, and note the restraint that acted afterwards."""
        with self._transaction():
            for edit_id, strength in strengths.items():
                self._execute("UPDATE edits SET strength = ? WHERE id = ?", (strength, edit_id))
            self._insert_restraints(self.last_batch, restraints)
            self._event("strengths", {str(k): v for k, v in strengths.items()}, self.last_batch)

    def record_choice(self, restraints: Mapping[str, str], config: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Note a new restraint of every module, which has acted on it."""
        with self._transaction():
            self._write_meta({"config": dict(config)})
            self._insert_restraints(self.last_batch, restraints)
            self._event("tune", dict(event), self.last_batch)

    @property
    def last_batch(self) -> int:
        """Number of the last batch; 0 before the first."""
        return int(self._execute("SELECT coalesce(max(id), 0) FROM batches").fetchone()[0])

    @property
    def last_edit(self) -> int:
        """Number of the last edit; 0 before the first."""
        return int(self._execute("SELECT coalesce(max(id), 0) FROM edits").fetchone()[0])

    @property
    def last_append(self) -> int:
        """Number of the last addition to the factors; 0 before the first."""
        return int(self._execute("SELECT coalesce(max(appended), 0) FROM edits").fetchone()[0])

    @property
    def standing(self) -> int:
        """How many edits stand."""
        rule = "appended IS NOT NULL AND undone_at IS NULL"
        return int(self._execute(f"SELECT count(*) FROM edits WHERE {rule}").fetchone()[0])

    def edits(self, *, standing: bool = False) -> list[EditRecord]:
        """All edits in order, or those whose factors are in the adapter."""
        rule = " WHERE appended IS NOT NULL AND undone_at IS NULL" if standing else ""
        return [_edit(row) for row in self._execute(f"SELECT * FROM edits{rule} ORDER BY id")]

    def edit(self, edit_id: int) -> EditRecord:
        """One edit.

        Raises:
            HistoryError: There is none of that number.
        """
        row = self._execute("SELECT * FROM edits WHERE id = ?", (edit_id,)).fetchone()
        if row is None:
            raise HistoryError(f"edit: {edit_id} is not in the history, which has edits 1 to {self.last_edit}")
        return _edit(row)

    def standing_on(self, subject: str, relation: str) -> list[EditRecord]:
        """Edits that stand with this subject and relation, in the form of `subject_key` and `relation_key`."""
        rows = self._execute(
            "SELECT * FROM edits WHERE subject = ? AND relation = ? AND appended IS NOT NULL AND undone_at IS NULL "
            "ORDER BY id",
            (subject, relation),
        )
        return [_edit(row) for row in rows]

    def factors(self, leader: int) -> Factors:
        """The factors in the row of an edit that leads.

        Raises:
            HistoryError: There are none, or they are damaged.
        """
        row = self._execute("SELECT data FROM factors WHERE edit = ?", (leader,)).fetchone()
        if row is None:
            raise HistoryError(f"edit: {leader} has no factors in the history")
        try:
            return Factors.from_bytes(row[0])
        except SafetensorError as error:
            raise HistoryError(f"edit: {leader}: its factors are damaged: {error}") from None

    def restraints(self) -> list[RestraintRecord]:
        """Every time the restraint acted, in order."""
        rows = self._execute("SELECT batch, module, restraint FROM restraints ORDER BY id")
        return [RestraintRecord(*row) for row in rows]

    def events(self) -> list[dict[str, Any]]:
        """Alerts, undos and changes of the restraint in order, each a row of the table with its ``data`` read.

        Raises:
            HistoryError: A row is damaged.
        """
        return [row | {"data": _event_data(row)} for row in self.table("events")]

    def table(self, name: str) -> list[dict[str, Any]]:
        """All rows of a table, for reports: runs, batches, figures, measurements, events or restraints.

        Raises:
            ValueError: There is no such table.
        """
        known = ("runs", "batches", "edits", "figures", "measurements", "events", "restraints")
        if name not in known:
            raise ValueError(f"table: {name!r} is not one of {', '.join(known)}")
        cursor = self._execute(f"SELECT * FROM {name} ORDER BY rowid")
        columns = [column[0] for column in cursor.description]
        return [dict(zip(columns, row, strict=True)) for row in cursor]

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read in the block is of one moment, also while a session writes."""
        self._execute("BEGIN")
        try:
            yield
        finally:
            self._execute("ROLLBACK")

    @classmethod
    def _writable(cls, path: str | Path | None, author: str | None) -> History:
        author = author or _user()
        if path is None:
            return cls(sqlite3.connect(":memory:", isolation_level=None), None, None, author)
        lock = FileLock(f"{path}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise HistoryLockedError(
                f"history: {path} is being written by another session; close that one, or wait for it"
            ) from None
        except OSError as error:
            raise HistoryError(f"history: {path} cannot be written: {error}") from None
        try:
            with _named(path):
                connection = sqlite3.connect(path, isolation_level=None)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                # a file that cannot be written shows here and not after the first batch
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
        except BaseException:
            lock.release()
            raise
        return cls(connection, Path(path), lock, author)

    def _begin_run(self) -> None:
        versions = json.dumps({name: _version(name) for name in PACKAGES} | {"python": platform.python_version()})
        cursor = self._execute(
            "INSERT INTO runs (opened_at, author, host, pid, versions) VALUES (?, ?, ?, ?, ?)",
            (_now(), self.author, platform.node(), os.getpid(), versions),
        )
        self.run = cursor.lastrowid

    def _check_format(self) -> None:
        try:
            found = self.meta.get("format")
        except HistoryError as error:
            raise HistoryError(f"history: {self.path} is no history of edits: {error}") from None
        if found != FORMAT:
            raise HistoryError(f"history: {self.path} has format {found}, this version reads {FORMAT}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _execute(self, statement: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        with _named(self.path):
            return self._connection.execute(statement, tuple(values))

    def _write_meta(self, facts: Mapping[str, Any]) -> None:
        for key, value in facts.items():
            self._execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def _insert_edit(self, edit: EditRecord, raw: str | None) -> None:
        request = json.dumps(edit.request.document()) if edit.request is not None else raw
        row = (
            edit.id,
            edit.batch,
            request,
            subject_key(edit.request) if edit.request else "",
            relation_key(edit.request) if edit.request else "",
            edit.request.target_new if edit.request else "",
            edit.status,
            edit.reason,
            edit.stronger,
            edit.probability_before,
            edit.probability_after,
            edit.answer_before,
            edit.answer_after,
            edit.appended,
            edit.leader,
            edit.strength,
            edit.undone_at,
            edit.undone_by,
            edit.undone_reason,
        )
        self._execute(f"INSERT INTO edits VALUES ({_marks(len(row))})", row)

    def _insert_restraints(self, batch: int, restraints: Mapping[str, str]) -> None:
        for module, text in restraints.items():
            self._execute(
                "INSERT INTO restraints (batch, at, module, restraint) VALUES (?, ?, ?, ?)",
                (batch, _now(), module, text),
            )

    def _mark_undone(self, edits: Sequence[int], reason: str) -> None:
        for edit_id in edits:
            self._execute(
                "UPDATE edits SET undone_at = ?, undone_by = ?, undone_reason = ? WHERE id = ?",
                (_now(), self.author, reason, edit_id),
            )
        self._event("undo", {"edits": list(edits), "reason": reason}, self.last_batch)

    def _event(self, kind: str, data: Mapping[str, Any], batch: int | None = None) -> None:
        self._execute(
            "INSERT INTO events (at, run, batch, kind, data) VALUES (?, ?, ?, ?, ?)",
            (_now(), self.run, batch, kind, json.dumps(data)),
        )


def _event_data(row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(json.loads(row["data"]))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise HistoryError(f"history: event {row['id']} is damaged: {error}") from None


def subject_key(request: EditRequest) -> str:
    """A request's subject as it is compared: case folded, single spaces."""
    return " ".join(request.subject.split()).casefold()


def relation_key(request: EditRequest) -> str:
    """A request's relation as it is compared: its identifier, or else its prompt template."""
    return request.relation_id or " ".join(request.prompt.split()).casefold()


def moments_digest(moments: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """A few sums of each second moment, by which another one is noticed."""
    found = {}
    for name, moment in moments.items():
        weights = torch.linspace(0, 1, len(moment), dtype=torch.float64, device=moment.device)
        diagonal = moment.diagonal().double()
        found[name] = [float(diagonal.sum()), float(diagonal @ weights), float(moment[0].double().sum())]
    return found


def _edit(row: Sequence[Any]) -> EditRecord:
    (edit_id, batch, request, _subject, _relation, _target, *rest) = row
    try:
        document = json.loads(request)
        is_request = isinstance(document, dict) and "invalid" not in document
        return EditRecord(edit_id, batch, EditRequest.stored(document) if is_request else None, *rest)
    except (ValueError, TypeError) as error:
        raise HistoryError(f"history: edit {edit_id}: its request is damaged: {error}") from None


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container may have no name for its user


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def _named(path: str | Path | None) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise HistoryError(f"history: {path or 'in memory'}: {error}") from error
