"""What an experiment has measured so far: one SQLite file, so that it can be stopped and gone on with at any time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..models.fingerprint import same_base, short_form

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS base (figure TEXT PRIMARY KEY, outcomes TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS immediate (unit TEXT, edit INTEGER, outcomes TEXT NOT NULL, PRIMARY KEY (unit, edit));
CREATE TABLE IF NOT EXISTS measured (
    unit TEXT, mark INTEGER, variant TEXT, outcomes TEXT NOT NULL, layers TEXT NOT NULL,
    PRIMARY KEY (unit, mark, variant)
);
CREATE TABLE IF NOT EXISTS spectra (unit TEXT, variant TEXT, layers TEXT NOT NULL, PRIMARY KEY (unit, variant));
"""

_OPTIONS = {"marks": "edits", "variants": "restraints", "schedules": "schedule", "fluency_tokens": "fluency"}
"""Facts that the command line calls otherwise."""

_UNNAMED = {"published": False}
"""Facts that files of earlier versions do not name, with what held for them."""

Outcomes = dict[str, list[list[float]]]
"""By the figure's name, one list of numbers for each unit (request, item, text)."""


@dataclass(frozen=True)
class Measured:
    """What was measured on one variant at one mark."""

    unit: str
    mark: int
    variant: str
    outcomes: Outcomes
    layers: dict[str, dict[str, float]]


def stored_facts(path: Path) -> dict[str, Any]:
    """What decides the figures of an experiment, from its file, which is only read.

    Raises:
        ValueError: The file holds no measurements of an experiment.
    """
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        return _facts(connection)
    except sqlite3.Error as error:
        raise ValueError(f"{path.name}: {error}") from None
    finally:
        connection.close()


def _facts(connection: sqlite3.Connection) -> dict[str, Any]:
    found = {}
    for key, value in connection.execute("SELECT key, value FROM meta"):
        try:
            found[key] = json.loads(value)
        except (ValueError, TypeError, RecursionError):
            raise ValueError(f"meta.{key} is damaged, it holds no JSON") from None
    return found


def same_fact(name: str, one: Any, other: Any) -> bool:
    """Whether two experiments agree in a fact; the base's fingerprint is compared as weights are."""
    if name == "base" and one and other:
        return same_base(one, other)
    return one == other


def said(name: str, value: Any) -> str:
    """A fact in a message; the base's fingerprint in short."""
    return f"weights {short_form(value)}" if name == "base" and value else repr(value)


class Store:
    """The measurements of one experiment.

    Args:
        path: Its file; made if it does not exist.
        facts: What decides the figures; a file that was begun with others is refused.

    Raises:
        ValueError: Another process writes the file, or it belongs to another experiment.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self._lock = FileLock(f"{path}.lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise ValueError(f"out: {path.parent} is being written by another experiment; wait for it") from None
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.executescript(_SCHEMA)
            # of JSON, so that what was read compares with what was given; a fingerprint knows more than its text
            known = {name: facts[name] for name in ("base",) if name in facts}
            self._check(path, json.loads(json.dumps(dict(facts))) | known)
        except sqlite3.Error as error:
            self.close()
            raise ValueError(f"out: {path} holds no experiment's measurements: {error}") from None
        except BaseException:
            self.close()
            raise

    def _check(self, path: Path, facts: dict[str, Any]) -> None:
        found = self.facts()
        for key, value in facts.items():
            before = found.get(key, _UNNAMED.get(key))
            if found and not same_fact(key, before, value):
                own, other = said(key, value), said(key, before)
                raise ValueError(
                    f"out: {path.parent} holds an experiment with {_OPTIONS.get(key, key)} = {other}, this one has "
                    f"{own}; give another folder"
                )
        if not found:
            rows = [(key, json.dumps(value)) for key, value in facts.items()]
            self._connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)

    def facts(self) -> dict[str, Any]:
        """What decides the figures, as it was given when the file was begun."""
        return _facts(self._connection)

    def close(self) -> None:
        """Give the file free."""
        self._connection.close()
        self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def base(self) -> Outcomes:
        """Outcomes of the base model; empty before they are measured."""
        rows = self._connection.execute("SELECT figure, outcomes FROM base ORDER BY rowid")
        return {figure: json.loads(outcomes) for figure, outcomes in rows}

    def write_base(self, outcomes: Mapping[str, Any]) -> None:
        """Keep the outcomes of the base model."""
        self._connection.execute("BEGIN")
        rows = [(figure, json.dumps(own)) for figure, own in outcomes.items()]
        self._connection.executemany("INSERT OR REPLACE INTO base VALUES (?, ?)", rows)
        self._connection.execute("COMMIT")

    def immediate(self, unit: str) -> list[Outcomes]:
        """Outcomes of every edit of a sequence right after it was made, in order."""
        rows = self._connection.execute("SELECT outcomes FROM immediate WHERE unit = ? ORDER BY edit", (unit,))
        return [json.loads(outcomes) for (outcomes,) in rows]

    def write_immediate(self, unit: str, first: int, outcomes: Sequence[Mapping[str, Any]]) -> None:
        """Keep the outcomes of edits from number ``first`` on."""
        rows = [(unit, first + index, json.dumps(own)) for index, own in enumerate(outcomes)]
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT OR REPLACE INTO immediate VALUES (?, ?, ?)", rows)
        self._connection.execute("COMMIT")

    def has(self, unit: str, mark: int, variant: str) -> bool:
        """Whether this has been measured."""
        query = "SELECT 1 FROM measured WHERE unit = ? AND mark = ? AND variant = ?"
        return self._connection.execute(query, (unit, mark, variant)).fetchone() is not None

    def write(self, one: Measured) -> None:
        """Keep a measurement."""
        row = (one.unit, one.mark, one.variant, json.dumps(one.outcomes), json.dumps(one.layers))
        self._connection.execute("INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?, ?)", row)

    def measured(self) -> Iterator[Measured]:
        """Everything measured, in the order in which it was."""
        for unit, mark, variant, outcomes, layers in self._connection.execute("SELECT * FROM measured ORDER BY rowid"):
            yield Measured(unit, mark, variant, json.loads(outcomes), json.loads(layers))

    def write_spectra(self, unit: str, variant: str, layers: Mapping[str, Any]) -> None:
        """Keep singular values, by layer and by name."""
        self._connection.execute("INSERT OR REPLACE INTO spectra VALUES (?, ?, ?)", (unit, variant, json.dumps(layers)))

    def spectra(self) -> Iterator[tuple[str, str, dict[str, dict[str, list[float]]]]]:
        """Unit, variant and singular values of everything kept."""
        for unit, variant, layers in self._connection.execute("SELECT * FROM spectra ORDER BY rowid"):
            yield unit, variant, json.loads(layers)
