"""The tables of a history, and what a file from elsewhere must be like before a value of it is used."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import HistoryError

SCHEMA = """
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
"""Format 1, as version 0.1.0 wrote it."""

ADDED = """
CREATE TABLE looks (
    edit INTEGER PRIMARY KEY REFERENCES edits, at TEXT NOT NULL, batch INTEGER NOT NULL, cause TEXT NOT NULL,
    answer TEXT NOT NULL, probability REAL, holds INTEGER NOT NULL, taken REAL
);
CREATE TABLE chats (
    edit INTEGER PRIMARY KEY REFERENCES edits, before TEXT, answer TEXT NOT NULL, holds INTEGER NOT NULL
);
CREATE INDEX edits_by_addition ON edits (appended, undone_at);
CREATE TABLE consolidations (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, batch INTEGER NOT NULL, restraint INTEGER NOT NULL, edits TEXT NOT NULL,
    settings TEXT NOT NULL, texts TEXT NOT NULL, data BLOB NOT NULL
);
CREATE TABLE phrasings (edit INTEGER PRIMARY KEY REFERENCES edits, prompts TEXT NOT NULL);
"""
"""What later versions add to format 1; a history without it is read as it is, and gets it when it is gone on with."""

_KINDS: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "TEXT": ("text", (str,)),
    "INTEGER": ("a whole number", (int,)),
    "REAL": ("a number", (int, float)),
    "BLOB": ("bytes", (bytes,)),
}
_TIMES = ("at", "opened_at", "finished_at", "undone_at")
_STATISTICS = ("sqlite_stat1", "sqlite_stat4")
_EVENTS: Mapping[str, Mapping[Any, Any]] = {
    "alert": {"action": str, "source": str, "message": str},
    "undo": {"edits": [int], "reason": str},
    "tune": {"restraints": {str: str}},
    "restrain": {str: str},
    "strengths": {str: float},
    "look": {"cause": str, "edits": {str: str}},
    "consolidate": {"edits": int, "steps": int, "held": [int], "divergence": [float]},
}
_META: Mapping[str, Any] = {
    "format": str,
    "model": str,
    "base": object,
    "editor": {"name": str, "hyperparameters": {str: object}},
    "contexts": [str],
    "config": {str: object},
    "moments": {str: [float]},
    "protect": {"facts": [{"prompt": str, "object": str}], "action": str},
    "ask": str,
    "serve_dtype": str,
    "search_ask": str,
    "limits": [{"figure": str, "value": float, "base": float, "higher_is_better": bool, "action": str}],
}


def statements(schema: str) -> list[str]:
    """The statements of a schema, one by one."""
    return [statement for one in schema.split(";") if (statement := one.strip())]


def secure(connection: sqlite3.Connection) -> None:
    """Take from a file's own schema the means to run anything."""
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER, False)
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_VIEW, False)


def require_schema(connection: sqlite3.Connection, path: str | Path) -> bool:
    """Refuse a file that holds anything but the tables and indices of a history, column for column.

    Views, triggers, virtual tables, generated columns and checks are refused with it, before any of them is touched.

    Returns:
        Whether it holds what later versions have added.

    Raises:
        HistoryError: The file is none of a history.
    """
    try:
        found = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    except sqlite3.Error as error:
        raise HistoryError(f"history: {path} is no history of edits: {error}") from error
    needed, added = _forms(SCHEMA), _forms(ADDED)
    own = dict[tuple[str, str], str]()
    for kind, name, sql in found:
        automatic = kind == "index" and sql is None and str(name).startswith("sqlite_autoindex_")
        if not automatic and not (kind == "table" and name in _STATISTICS):
            own[str(kind), str(name)] = _form(str(sql))
    for (kind, name), form in needed.items():
        if (kind, name) not in own:
            raise HistoryError(f"history: {path} is no history of edits: it has no {kind} {name!r}")
        if own[kind, name] != form:
            raise HistoryError(f"history: {path}: its {kind} {name!r} has other columns than a history's")
    for (kind, name), form in own.items():
        if (needed | added).get((kind, name)) != form:
            raise HistoryError(f"history: {path} holds a {kind} {name!r}, which no history has")
    return all(key in own for key in added)


class Columns:
    """What the columns of the tables hold, by which rows are checked as they are fetched.

    Args:
        path: Of the file, for messages.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        connection = sqlite3.connect(":memory:")
        for statement in statements(SCHEMA + ADDED):
            connection.execute(statement)
        self._columns = {
            name: [(column, kind, bool(given) or bool(key)) for _, column, kind, given, _, key in info]
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            if (info := connection.execute(f"PRAGMA table_info({name})").fetchall())
        }
        connection.close()

    def rows(self, table: str, rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """The rows of a table by the names of their columns.

        Raises:
            HistoryError: A value is of another kind than its column; the message names table, row and column.
        """
        return [self._row(table, number, row) for number, row in enumerate(rows, start=1)]

    def _row(self, table: str, number: int, row: Sequence[Any]) -> dict[str, Any]:
        found = dict[str, Any]()
        for (column, kind, needed), value in zip(self._columns[table], row, strict=True):
            words, types = _KINDS[kind]
            if value is None and not needed:
                found[column] = None
                continue
            if not isinstance(value, types):
                raise self._damaged(table, number, column, f"is {_shown(value)}, {words} is accepted")
            if column in _TIMES and not _is_time(value):
                raise self._damaged(table, number, column, f"is {_shown(value)}, a time in ISO 8601 is accepted")
            found[column] = value
        return found

    def _damaged(self, table: str, number: int, column: str, what: str) -> HistoryError:
        return HistoryError(f"history: {self._path}: {table}, row {number}: {column} {what}")


@contextmanager
def named(path: str | Path | None) -> Iterator[None]:
    """Errors of SQLite in the block are of this file."""
    try:
        yield
    except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
        raise HistoryError(f"history: {path or 'in memory'}: {error}") from error


def read_json(text: str, where: str) -> Any:
    """What a JSON text holds.

    Args:
        text: From a file that is not trusted.
        where: File and field, for the message.

    Raises:
        HistoryError: It is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HistoryError(f"{where} is damaged: {' '.join(str(error).split())}") from None


def read_meta(texts: Mapping[str, str], path: str | Path) -> dict[str, Any]:
    """The facts of a history from their JSON.

    Raises:
        HistoryError: One is damaged or of another kind than it must be.
    """
    found = {key: read_json(text, f"history: {path}: meta, {key}") for key, text in texts.items()}
    if not isinstance(found.get("base"), (str, type(None))):
        raise HistoryError(f"history: {path}: meta, base is {_shown(found['base'])}, text or null is accepted")
    for key, value in found.items():
        _require_form(value, _META.get(key, object), f"history: {path}: meta, {key}")
    return found


def read_event(row: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """A row of the table of events with its data read.

    Raises:
        HistoryError: Its data are damaged, or are not those of an event of its kind.
    """
    where = f"history: {path}: event {row['id']}"
    data = read_json(row["data"], where)
    _require_form(data, _EVENTS.get(row["kind"], {str: object}), where)
    return {**row, "data": data}


def read_versions(row: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """A row of the table of runs with its versions read.

    Raises:
        HistoryError: They are damaged.
    """
    where = f"history: {path}: versions of run {row['id']}"
    versions = read_json(row["versions"], where)
    _require_form(versions, {str: object}, where)
    return {**row, "versions": versions}


def _require_form(value: Any, form: Any, where: str) -> None:
    """Raise HistoryError where a value has not this form: a type, a list of one, or a mapping of names or of any."""
    if isinstance(form, list):
        _require_kind(value, list, where)
        for index, item in enumerate(value):
            _require_form(item, form[0], f"{where}[{index}]")
    elif isinstance(form, Mapping):
        _require_kind(value, dict, where)
        for key in form:
            if key is str:
                for name, item in value.items():
                    _require_form(item, form[str], f"{where}.{name}")
            elif key not in value:
                raise HistoryError(f"{where} has no {key}")
            else:
                _require_form(value[key], form[key], f"{where}.{key}")
    else:
        _require_kind(value, form, where)


_WORDS: Mapping[type, str] = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "an object"
}  # fmt: skip


def _require_kind(value: Any, kind: type, where: str) -> None:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind in (int, float)):
        raise HistoryError(f"{where} is {_shown(value)}, {_WORDS[kind]} is accepted")


def number_or_none(value: float) -> float | None:
    """What SQLite stores of a number: it knows no NaN."""
    return None if math.isnan(value) else value


def _forms(schema: str) -> dict[tuple[str, str], str]:
    found = {}
    for statement in statements(schema):
        match = re.match(r"CREATE (TABLE|INDEX) (\w+)", statement)
        assert match is not None
        found[match[1].lower(), match[2]] = _form(statement)
    return found


def _form(sql: str) -> str:
    return " ".join(sql.split())


def _is_time(text: Any) -> bool:
    try:
        return datetime.fromisoformat(str(text)) is not None
    except ValueError:
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
