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
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ..errors import HistoryError, HistoryLockedError
from ..processes import is_main
from ..requests import EditRequest
from ..spectral import parse_restraint
from .consolidations import WRITTEN, ConsolidationRecord, read_consolidation, read_phrasings
from .records import (
    APPLIED,
    FAILED,
    REJECTED,
    SKIPPED,
    BatchRecord,
    Chat,
    EditRecord,
    Factors,
    Look,
    RestraintRecord,
    relation_key,
    subject_key,
)
from .schema import (
    ADDED,
    SCHEMA,
    Columns,
    named,
    number_or_none,
    read_event,
    read_json,
    read_meta,
    read_versions,
    require_schema,
    secure,
    statements,
)
from .verification import Verification

FORMAT = "1"
PACKAGES = ("peft-prune", "torch", "transformers", "peft", "accelerate")
_FACTS = ("model", "base", "editor", "contexts", "config", "moments")
_KEYS = ("request", "subject", "relation", "target")
_LOOK = ("at", "batch", "cause", "answer", "probability")
_STANDING = "appended IS NOT NULL AND undone_at IS NULL"


class History:
    """One SQLite file; a process that writes holds it alone, others may read meanwhile.

    It is in WAL mode, and every batch is one transaction: a process that is killed loses at most the batch in flight.
    Of several processes of one job rank 0 alone has the file; the others keep theirs in memory.

    Use `create`, `open` or `read`; close it, or use it as a context.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None, lock: FileLock | None, author: str) -> None:
        self._connection = connection
        self._lock = lock
        self._process = os.getpid()
        self._columns = Columns(path or "in memory")
        self.path = path
        self.author = author
        self.run: int | None = None

    @classmethod
    def create(cls, path: str | Path | None, meta: Mapping[str, Any], author: str | None = None) -> History:
        """A new history; None keeps it in memory. A file is there whole or not at all.

        Args:
            path: The file; it must not exist.
            meta: Facts about the model, the editor and the restraint, kept as JSON.
            author: Who edits; the user of this process if not given.

        Raises:
            HistoryError: The file exists, or cannot be written.
            HistoryLockedError: Another process writes it.
        """
        if path is None or not is_main():
            return cls(_connected(":memory:"), _or_none(path), None, author or _user())._begun(meta)
        place = _place(path)
        if place.exists():
            raise HistoryError(f"history: {path} exists; use EditSession.resume to go on with it, or another name")
        lock = _locked(path)
        try:
            # what is half made bears another name, so that a kill blocks none; the lock makes that name our own
            temporary = place.with_name(f".{place.name}.new")
            for ending in ("", "-journal", "-wal", "-shm"):
                temporary.with_name(temporary.name + ending).unlink(missing_ok=True)
            with named(path):
                connection = _connected(temporary)
                # here, for the change of mode needs a journal, which a kill would leave beside the file
                connection.execute("PRAGMA journal_mode = WAL")
            try:
                made = cls(connection, Path(path), None, author or _user())._begun(meta)
            finally:
                connection.close()
            os.replace(temporary, place)
            _sync(place.parent)
            history = cls(_opened(path), Path(path), lock, made.author)
        except OSError as error:
            lock.release()
            raise HistoryError(f"history: {path} cannot be written: {error.strerror}") from None
        except BaseException:
            lock.release()
            raise
        history.run = made.run
        return history

    @classmethod
    def open(cls, path: str | Path, author: str | None = None) -> History:
        """An existing history, to go on with it.

        Raises:
            HistoryError: The file is missing, damaged, read-only, of another format, or holds more than a history does.
            HistoryLockedError: Another process writes it.
        """
        if not _place(path).is_file():
            raise HistoryError(f"history: {path} does not exist")
        lock = _locked(path) if is_main() else None
        try:
            connection = _opened(path) if is_main() else _copied(path)
            history = cls(connection, Path(path), lock, author or _user())
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        try:
            history._check_format()
            with history._transaction():
                history._add_missing()
                history._begin_run()
        except BaseException:
            history.close()
            raise
        return history

    @classmethod
    def read(cls, path: str | Path) -> History:
        """An existing history, to read it only; also while a session writes it.

        Raises:
            HistoryError: The file is missing, damaged, of another format, or holds more than a history does.
        """
        found = _place(path)
        if not found.is_file():
            raise HistoryError(f"history: {path} does not exist")
        # SQLite wants to put files beside a WAL database even to read it; where it cannot, nobody writes either
        sealed = not os.access(found.parent, os.W_OK) and not Path(f"{found}-wal").exists()
        uri = found.as_uri() + ("?immutable=1" if sealed else "?mode=ro")
        with named(path):
            connection = _connected(uri)
        history = cls(connection, Path(path), None, "")
        try:
            require_schema(connection, path)
            history._check_format()
        except BaseException:
            history.close()
            raise
        return history

    def close(self) -> None:
        """Give the file free for others; in a forked child nothing, for the file is its parent's."""
        if os.getpid() != self._process:
            return
        self._connection.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def meta(self) -> dict[str, Any]:
        """Facts about the model, the editor and the restraint.

        Raises:
            HistoryError: One is damaged.
        """
        texts = {row["key"]: row["value"] for row in self._rows("meta")}
        return read_meta(texts, self._name)

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
                self._insert_chat(edit.id, edit.chat)
                if edit.id in batch.seen:
                    look = self._look(batch.seen[edit.id], batch.id, "edit")
                    self._insert_look(edit.id, look, _taken(edit, edit.probability_taken, look))
            for edit_id, factors in batch.factors.items():
                self._execute("INSERT INTO factors VALUES (?, ?)", (edit_id, factors.to_bytes()))
            self._insert_restraints(batch.id, batch.restraints)
            for module, figures in batch.figures.items():
                values = [None if v is None else number_or_none(v) for v in asdict(figures).values()]
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

    def record_looks(self, found: Mapping[int, Verification], cause: str) -> dict[int, str]:
        """Write what was seen of edits; an event tells which of them it gives another state.

        Args:
            found: What the model says, by number of the edit; all of them stand.
            cause: Why they were looked at.

        Returns:
            The new state of each edit that has another one than before, by its number.
        """
        with self._transaction():
            before = {record.id: record for record in self.edits(standing=True)}
            changed = {}
            for edit_id, one in found.items():
                old, look = before[edit_id], self._look(one, self.last_batch, cause)
                taken = _taken(old, old.reference, look)
                self._insert_look(edit_id, look, taken)
                if one.chat is not None:
                    first = None if old.chat is None else old.chat.before
                    self._insert_chat(edit_id, Chat(first, one.chat.answer, one.chat.holds))
                new = replace(old, seen=look, probability_taken=taken).state
                if new != old.state:
                    changed[edit_id] = new
            if changed:
                data = {"cause": cause, "edits": {str(edit_id): state for edit_id, state in changed.items()}}
                self._event("look", data, self.last_batch)
        return changed

    def record_restraint(self, restraints: Mapping[str, str]) -> None:
        """Note that the restraint acted on these modules, after the last batch."""
        with self._transaction():
            self._insert_restraints(self.last_batch, restraints)
            self._event("restrain", dict(restraints), self.last_batch)

    def record_consolidation(
        self, record: ConsolidationRecord, restraints: Mapping[str, str], told: Mapping[str, Any]
    ) -> None:
        """Keep a consolidation in the place of the one before it, and the restraint that it began with.

        Args:
            record: Its number of the last restraint is taken from the history itself.
            restraints: What acted, by module; nothing where nothing was pending.
            told: For the log; see the event "consolidate" in the schema.
        """
        with self._transaction():
            self._insert_restraints(self.last_batch, restraints)
            self._execute("DELETE FROM consolidations")
            values = (
                *(_now(), record.batch, self.last_restraint, json.dumps({str(k): v for k, v in record.edits.items()})),
                *(json.dumps({**asdict(record.settings), WRITTEN: record.written}), json.dumps(list(record.texts))),
                Factors(record.updates, {}).to_bytes(),
            )
            self._execute(
                "INSERT INTO consolidations (at, batch, restraint, edits, settings, texts, data) "
                f"VALUES ({_marks(len(values))})",
                values,
            )
            for edit, prompts in record.phrasings.items():
                row = (edit, json.dumps(list(prompts), ensure_ascii=False))
                self._execute("INSERT OR REPLACE INTO phrasings (edit, prompts) VALUES (?, ?)", row)
            self._event("consolidate", told, self.last_batch)

    def drop_consolidation(self) -> None:
        """Forget the consolidation, which is then not done again."""
        with self._transaction():
            self._execute("DELETE FROM consolidations")

    def consolidation(self) -> ConsolidationRecord | None:
        """The last consolidation, whether or not it still stands; None where there is none.

        Raises:
            HistoryError: It is damaged.
        """
        rows = self._rows("consolidations", "ORDER BY id DESC LIMIT 1") if self._has("consolidations") else []
        return read_consolidation(rows[0], self._name) if rows else None

    @property
    def consolidated_batch(self) -> int:
        """Number of the last batch before the last consolidation; 0 where there is none."""
        if not self._has("consolidations"):
            return 0
        return self._number("SELECT coalesce((SELECT batch FROM consolidations ORDER BY id DESC LIMIT 1), 0)")

    @property
    def unconsolidated(self) -> int:
        """How many edits stand that were added since the last consolidation; all that stand where there is none."""
        return self._number(f"SELECT count(*) FROM edits WHERE {_STANDING} AND batch > {self.consolidated_batch}")

    def phrasings(self) -> dict[int, tuple[str, ...]]:
        """The prompts that the model has found for edits, by their number.

        Raises:
            HistoryError: They are damaged.
        """
        rows = self._rows("phrasings", "ORDER BY edit") if self._has("phrasings") else []
        return read_phrasings(rows, self._name)

    def standing_consolidation(self, records: Sequence[EditRecord]) -> ConsolidationRecord | None:
        """The last consolidation, where it is that of these edits and no restraint has acted since."""
        found = self.consolidation()
        return found if found is not None and found.stands(records, self.last_restraint) else None

    @property
    def last_restraint(self) -> int:
        """Number of the last time that the restraint acted; 0 before the first."""
        return self._number("SELECT coalesce(max(id), 0) FROM restraints")

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
        return self._number("SELECT coalesce(max(id), 0) FROM batches")

    @property
    def last_edit(self) -> int:
        """Number of the last edit; 0 before the first."""
        return self._number("SELECT coalesce(max(id), 0) FROM edits")

    @property
    def last_append(self) -> int:
        """Number of the last addition to the factors; 0 before the first."""
        return self._number("SELECT coalesce(max(appended), 0) FROM edits")

    @property
    def standing(self) -> int:
        """How many edits stand."""
        return self._number(f"SELECT count(*) FROM edits WHERE {_STANDING}")

    def edits(self, *, standing: bool = False, first: int = 1) -> list[EditRecord]:
        """All edits in order, or those whose factors are in the adapter.

        Args:
            standing: The latter.
            first: Number of the first one that is wanted.

        Raises:
            HistoryError: A row is damaged.
        """
        return self._records(f"WHERE id >= ? {f'AND {_STANDING}' if standing else ''} ORDER BY id", (first,))

    def edit(self, edit_id: int) -> EditRecord:
        """One edit.

        Raises:
            HistoryError: There is none of that number.
        """
        for record in self._records("WHERE id = ?", (edit_id,)):
            return record
        raise HistoryError(f"edit: {edit_id} is not in the history, which has edits 1 to {self.last_edit}")

    def standing_on(self, subject: str, relation: str) -> list[EditRecord]:
        """Edits that stand with this subject and relation, in the form of `subject_key` and `relation_key`."""
        return self._records(f"WHERE subject = ? AND relation = ? AND {_STANDING} ORDER BY id", (subject, relation))

    def factors(self, leader: int) -> Factors:
        """The factors in the row of an edit that leads.

        Raises:
            HistoryError: There are none, or they are damaged.
        """
        rows = self._rows("factors", "WHERE edit = ?", (leader,))
        if not rows:
            raise HistoryError(f"edit: {leader} has no factors in the history")
        try:
            return Factors.from_bytes(rows[0]["data"])
        except (SafetensorError, ValueError) as error:
            raise HistoryError(f"history: {self._name}: edit {leader}: its factors are damaged: {error}") from None

    def restraints(self) -> list[RestraintRecord]:
        """Every time the restraint acted, in order."""
        rows = self._rows("restraints", "ORDER BY id")
        for row in rows:
            try:
                parse_restraint(row["restraint"])
            except ValueError as error:
                raise HistoryError(f"history: {self._name}: restraint {row['id']}: {error}") from None
        return [RestraintRecord(row["batch"], row["module"], row["restraint"]) for row in rows]

    def runs(self) -> list[dict[str, Any]]:
        """Who opened the history and when, in order, each a row of the table with its ``versions`` read.

        Raises:
            HistoryError: A row is damaged.
        """
        return [read_versions(row, self._name) for row in self._rows("runs", "ORDER BY id")]

    def events(self) -> list[dict[str, Any]]:
        """Alerts, undos and changes of the restraint in order, each a row of the table with its ``data`` read.

        Raises:
            HistoryError: A row is damaged.
        """
        return [read_event(row, self._name) for row in self._rows("events", "ORDER BY id")]

    def table(self, name: str) -> list[dict[str, Any]]:
        """All rows of a table, for reports: runs, batches, figures, measurements, events or restraints.

        Raises:
            ValueError: There is no such table.
            HistoryError: A row is damaged.
        """
        known = ("runs", "batches", "edits", "figures", "measurements", "events", "restraints")
        if name not in known:
            raise ValueError(f"table: {name!r} is not one of {', '.join(known)}")
        return self._rows(name, "ORDER BY rowid")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read in the block is of one moment, also while a session writes."""
        self._execute("BEGIN")
        try:
            yield
        finally:
            self._execute("ROLLBACK")

    def _begun(self, meta: Mapping[str, Any]) -> History:
        """With its tables, its facts and its first run."""
        with self._transaction():
            for statement in statements(SCHEMA + ADDED):
                self._execute(statement)
            self._write_meta({"format": FORMAT, **meta})
            self._begin_run()
        return self

    def _add_missing(self) -> None:
        """Give a history of an earlier version what later ones have added."""
        with named(self._name):
            known = {name for (name,) in self._execute("SELECT name FROM sqlite_master").fetchall()}
        for statement in statements(ADDED):
            if statement.split()[2] not in known:
                self._execute(statement)

    def _begin_run(self) -> None:
        versions = json.dumps({name: _version(name) for name in PACKAGES} | {"python": platform.python_version()})
        cursor = self._execute(
            "INSERT INTO runs (opened_at, author, host, pid, versions) VALUES (?, ?, ?, ?, ?)",
            (_now(), self.author, platform.node(), os.getpid(), versions),
        )
        self.run = cursor.lastrowid

    def _check_format(self) -> None:
        facts = self.meta
        if facts.get("format") != FORMAT:
            raise HistoryError(f"history: {self._name} has format {facts.get('format')}, this version reads {FORMAT}")
        missing = [name for name in _FACTS if name not in facts]
        if missing:
            raise HistoryError(f"history: {self._name} does not say its {missing[0]}")

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
        if os.getpid() != self._process:
            raise HistoryError(
                f"history: {self._name} belongs to process {self._process}; a child that was forked from it cannot use "
                "it: open it there anew, once the other has closed it"
            )
        with named(self._name):
            return self._connection.execute(statement, tuple(values))

    def _rows(self, table: str, rule: str = "", values: Iterable[Any] = ()) -> list[dict[str, Any]]:
        with named(self._name):
            found = self._execute(f"SELECT * FROM {table} {rule}", values).fetchall()
        return self._columns.rows(table, found)

    def _number(self, query: str) -> int:
        with named(self._name):
            (found,) = self._execute(query).fetchone()
        if not isinstance(found, int):
            raise HistoryError(f"history: {self._name}: {query} gives {found!r}, a whole number is accepted")
        return found

    def _records(self, rule: str, values: Sequence[Any] = ()) -> list[EditRecord]:
        rows = self._rows("edits", rule, values)
        looks, chats = (self._of_edits(table, rule, values) for table in ("looks", "chats"))
        last = self.last_edit
        return [self._record(row, looks.get(row["id"]), chats.get(row["id"]), last) for row in rows]

    def _of_edits(self, table: str, rule: str, values: Sequence[Any]) -> dict[int, dict[str, Any]]:
        """The rows of a table that later versions have added, by the edit that each belongs to."""
        if not self._has(table):
            return {}
        chosen = f"WHERE edit IN (SELECT id FROM edits {rule})"
        return {row["edit"]: row for row in self._rows(table, chosen, values)}

    def _has(self, table: str) -> bool:
        with named(self._name):
            query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
            return bool(self._execute(query, (table,)).fetchone()[0])

    def _record(
        self, row: Mapping[str, Any], look: Mapping[str, Any] | None, chat: Mapping[str, Any] | None, last: int
    ) -> EditRecord:
        where = f"history: {self._name}: edit {row['id']}: its request"
        document = read_json(row["request"], where)
        if not isinstance(document, dict):
            raise HistoryError(f"{where} is {document!r:.60}, an object is accepted")
        is_request = "invalid" not in document
        if row["status"] not in (APPLIED, FAILED, REJECTED, SKIPPED):
            raise HistoryError(f"history: {self._name}: edit {row['id']}: its status is {row['status']!r:.60}")
        if row["leader"] is not None and not 1 <= row["leader"] <= last:
            raise HistoryError(f"history: {self._name}: edit {row['id']}: its leader, {row['leader']}, is no edit")
        if not math.isfinite(row["strength"]):
            raise HistoryError(f"history: {self._name}: edit {row['id']}: its strength is {row['strength']}")
        try:
            request = EditRequest.stored(document) if is_request else None
        except (ValueError, TypeError) as error:
            raise HistoryError(f"{where} is damaged: {error}") from None
        values = {name: value for name, value in row.items() if name not in _KEYS}
        if chat is not None:
            values["chat"] = Chat(chat["before"], chat["answer"], bool(chat["holds"]))
        if look is None:
            return EditRecord(request=request, **values)
        seen = Look(**{name: look[name] for name in _LOOK}, holds=bool(look["holds"]))
        return EditRecord(request=request, probability_taken=look["taken"], seen=seen, **values)

    @property
    def _name(self) -> str | Path:
        return self.path or "in memory"

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

    def _look(self, found: Verification, batch: int, cause: str) -> Look:
        return Look(_now(), batch, cause, found.answer, number_or_none(found.probability), found.holds)

    def _insert_look(self, edit_id: int, look: Look, taken: float | None) -> None:
        row = (edit_id, *asdict(look).values(), taken)
        self._execute(f"INSERT OR REPLACE INTO looks VALUES ({_marks(len(row))})", row)

    def _insert_chat(self, edit_id: int, chat: Chat | None) -> None:
        if chat is not None:
            values = (edit_id, chat.before, chat.answer, chat.holds)
            self._execute("INSERT OR REPLACE INTO chats VALUES (?, ?, ?, ?)", values)

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


def _taken(record: EditRecord, known: float | None, look: Look) -> float | None:
    """Of the target when an edit took: what is known of one that has, else what the first look sees that it holds."""
    if record.has_taken:
        return known
    return look.probability if look.holds else None


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


def _place(path: str | Path) -> Path:
    """Where the file stands, links followed: all names of a history share one lock."""
    return Path(os.path.realpath(path))


def _locked(path: str | Path) -> FileLock:
    lock = FileLock(f"{_place(path)}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise HistoryLockedError(
            f"history: {path} is being written by another session; close that one, or wait for it"
        ) from None
    except OSError as error:
        raise HistoryError(f"history: {path} cannot be written: {error}") from None
    return lock


def _connected(place: str | Path) -> sqlite3.Connection:
    connection = sqlite3.connect(place, isolation_level=None, uri=isinstance(place, str))
    secure(connection)
    return connection


def _or_none(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _copied(path: str | Path) -> sqlite3.Connection:
    """A copy in memory, for a process that writes no file."""
    with History.read(path) as source, named(path):
        connection = _connected(":memory:")
        for statement in source._connection.iterdump():
            connection.execute(statement)
    return connection


def _opened(path: str | Path) -> sqlite3.Connection:
    """A connection that may write a history which is there."""
    with named(path):
        connection = _connected(_place(path))
    try:
        require_schema(connection, path)
        with named(path):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            # a file that cannot be written shows here and not after the first batch
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except BaseException:
        connection.close()
        raise
    return connection


def _sync(folder: Path) -> None:
    """Make a rename in a folder last; where folders cannot be synced, renames last by themselves."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
