"""Spoilt histories: other files, lost tables, and cells of a wrong kind."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .scene import (
    Case,
    Scene,
    options,
    placed,
    put,
)


def histories(scene: Scene, draw: random.Random) -> Iterator[Case]:
    model = options({"model": scene.model, "out": "out"})
    readers = (
        ["history", "BAD"],
        ["history", "BAD", "--json"],
        ["report", "BAD", "--out", "report.html"],
        ["undo", "BAD", "1", *model],
        ["resume", "BAD", *model, "--requests", str(scene.requests), "--stats", str(scene.moments)],
        ["tune", "BAD", *model, "--facts", str(scene.facts)],
    )

    def case(name: str, spoil: Callable[[Path], None], lines: Sequence[list[str]] = readers) -> Case:
        line = draw.choice(lines)

        def prepare(folder: Path) -> list[str]:
            shutil.copy(scene.history, folder / "bad.db")
            spoil(folder / "bad.db")
            return placed(line, folder, BAD=folder / "bad.db")

        writes = line[0] in ("undo", "resume", "tune")
        return Case("history", f"{name} ({line[0]})", ("bad.db",), prepare, log="bad.db" if writes else None)

    def sql(*statements: str) -> Callable[[Path], None]:
        def spoil(path: Path) -> None:
            connection = sqlite3.connect(path, isolation_level=None)
            for statement in statements:
                connection.execute(statement)
            connection.close()

        return spoil

    data = scene.history.read_bytes()
    for share in (0.0, 0.01, 0.1, 0.3, 0.45):
        part = data[: int(len(data) * share)]
        yield case(f"first {share:.0%} of it", lambda path, part=part: put(path, part))
    for name, text in {"text": b"no history", "noise": draw.randbytes(9000), "JSON": b"[]"}.items():
        yield case(name, lambda path, text=text: put(path, text))
    yield case("another database", lambda path: (path.unlink(), sql("CREATE TABLE t (a)")(path)))
    yield case("no file", lambda path: path.unlink())
    yield case("a folder", lambda path: (path.unlink(), path.mkdir()))
    for table in ("meta", "edits", "batches", "runs", "factors", "restraints", "events"):
        needs = [line for line in readers if table not in ("runs", "factors", "restraints") or line[0] != "history"]
        yield case(f"no table {table}", sql("PRAGMA foreign_keys = off", f"DROP TABLE {table}"), needs)
    for key in ("format", "model", "editor", "config", "contexts", "base", "moments"):
        needs = readers if key in ("format", "model", "editor") else readers[3:5]
        yield case(f"no {key}", sql(f"DELETE FROM meta WHERE key = '{key}'"), needs)
        for value in ("{", "7", "[[1]]", "true", '{"a": [1]}', "[" * 3000):
            if (key, value) not in (("moments", '{"a": [1]}'), ("base", "7")):
                yield case(
                    f"{key} = {value[:12]}", sql(f"UPDATE meta SET value = '{value}' WHERE key = '{key}'"), needs
                )
    for value in ("{", "7", "[1]", "null", '{"prompt": 7}', '{"prompt": "note {}", "subject": "a"}', "[" * 3000):
        yield case(f"request = {value[:24]}", sql(f"UPDATE edits SET request = '{value}' WHERE id = 1"))
    for column, value in (
        ("status", "7"),
        ("status", "'perhaps'"),
        ("strength", "'a'"),
        ("leader", "'a'"),
        ("leader", "99"),
        ("appended", "'a'"),
        ("batch", "99"),
        ("batch", "'a'"),
        ("probability_after", "'a'"),
        ("answer_after", "x'ff00'"),
        ("undone_at", "7"),
    ):
        spoil = sql("PRAGMA foreign_keys = off", f"UPDATE edits SET {column} = {value} WHERE id = 1")
        yield case(f"{column} = {value}", spoil, readers[2:3] if column in ("batch", "undone_at") else readers[2:4])
    factors = {"empty": "x''", "text": "'a'", "number": "7", "noise": "x'" + draw.randbytes(64).hex() + "'"}
    for name, value in factors.items():
        yield case(f"factors {name}", sql(f"UPDATE factors SET data = {value}"), [readers[2], readers[4], readers[5]])
    for value in ("{", "7", "[1]", "null", "{}", '{"edits": "a"}'):
        insert = f"INSERT INTO events (at, run, batch, kind, data) VALUES ('2026-01-01', 1, 1, 'undo', '{value}')"
        yield case(f"event = {value}", sql(insert), readers[2:3])
    for value in ("'yesterday'", "7", "''"):
        yield case(f"time = {value}", sql(f"UPDATE batches SET finished_at = {value}"), readers[2:3])
    yield case(
        "restraint",
        sql("INSERT INTO restraints VALUES (99, 1, '2026-01-01T00:00:00', 'nowhere', 'sqrt:2')"),
        readers[3:5],
    )
