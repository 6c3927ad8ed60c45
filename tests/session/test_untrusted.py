"""A history from elsewhere is looked at before a value of it is used: one line, and nothing of it runs."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from peft_prune.cli import main
from peft_prune.errors import HistoryError, HistoryLockedError
from peft_prune.reporting import history_report
from peft_prune.session import History, adapter_of, attribute
from tests.session.scripted import MODULE, request, resumed, session
from tests.tiny import tiny_gpt2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history with a batch, a restraint, a look and an undo."""
    path = tmp_path_factory.mktemp("history") / "edits.db"
    with session(path) as run:
        run.edit([request(number) for number in range(5)], batch_size=2)
        run.undo(2)
        run.restrain()
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "edits.db"))


def change(path: Path, *statements: str, values: tuple[object, ...] = ()) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement, values)
    connection.commit()
    connection.close()


def used(path: Path) -> None:
    """Whatever this package does with a history, it does here."""
    with History.read(path) as log:
        log.restraints(), log.events(), log.runs()
        for table in ("runs", "batches", "edits", "figures", "measurements", "events", "restraints"):
            log.table(table)
        adapter_of(log, tiny_gpt2())
        attribute(log, MODULE)
        history_report(log)
    resumed(path).close()


def test_a_whole_history_passes_through_all_of_it(path: Path) -> None:
    used(path)


FOREIGN = {
    "view": "CREATE VIEW seen AS SELECT 1",
    "trigger": "CREATE TRIGGER spy AFTER INSERT ON runs BEGIN DELETE FROM edits; END",
    "table": "CREATE TABLE extra (x)",
    "index": "CREATE INDEX more ON events (kind)",
    "column": "ALTER TABLE edits ADD COLUMN more TEXT",
    "generated": "ALTER TABLE edits ADD COLUMN more TEXT AS (reason) VIRTUAL",
    "missing": "DROP TABLE measurements",
    "renamed": "ALTER TABLE edits RENAME COLUMN target TO object",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_holds_anything_but_a_history_is_refused_and_left_as_it_is(path: Path, kind: str) -> None:
    change(path, FOREIGN[kind])
    before = path.read_bytes()
    for opened in (History.read, History.open):
        with pytest.raises(HistoryError, match=r"edits\.db") as error:
            opened(path)
        assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_a_table_that_is_a_view_in_disguise_never_runs(path: Path) -> None:
    change(path, "ALTER TABLE runs RENAME TO kept", "CREATE VIEW runs AS SELECT * FROM kept, edits, edits AS more")
    with pytest.raises(HistoryError, match="has no table 'runs'"):
        History.read(path)


def test_statistics_that_sqlite_itself_adds_are_no_harm(path: Path) -> None:
    change(path, "ANALYZE")
    used(path)


META = "UPDATE meta SET value = ? WHERE key = "
DAMAGES: dict[str, tuple[str, object]] = {
    "meta no JSON": (META + "'config'", "{"),
    "meta nested deeply": (META + "'config'", "[" * 200_000),
    "meta of another kind": (META + "'config'", "[1]"),
    "meta bytes": (META + "'model'", b"\xff"),
    "no text": (META + "'model'", sqlite3.Binary(b"x")),
    "contexts": (META + "'contexts'", "[1]"),
    "editor": (META + "'editor'", '{"name": 3, "hyperparameters": {}}'),
    "editor without values": (META + "'editor'", '{"name": "rome"}'),
    "config unknown": (META + "'config'", '{"nonsense": 1}'),
    "config wrong": (META + "'config'", '{"restraint": 7}'),
    "config huge": (META + "'config'", '{"alpha": "x"}'),
    "moments": (META + "'moments'", '{"x": "y"}'),
    "limits": ("INSERT INTO meta VALUES ('limits', ?)", '[{"figure": "x"}]'),
    "limits no list": ("INSERT INTO meta VALUES ('limits', ?)", '"x"'),
    "format": (META + "'format'", '"9"'),
    "request no JSON": ("UPDATE edits SET request = ? WHERE id = 3", "{"),
    "request nested": ("UPDATE edits SET request = ? WHERE id = 3", '{"prompt":' * 100_000),
    "request wrong": ("UPDATE edits SET request = ? WHERE id = 3", '{"prompt": 3, "subject": "x", "target_new": "y"}'),
    "request unknown": ("UPDATE edits SET request = ? WHERE id = 3", '{"hello": 3}'),
    "status a number": ("UPDATE edits SET status = ? WHERE id = 3", sqlite3.Binary(b"applied")),
    "answer not UTF-8": ("UPDATE edits SET answer_after = CAST(? AS TEXT) WHERE id = 3", sqlite3.Binary(b"\xff\xfe")),
    "probability a word": ("UPDATE edits SET probability_after = ? WHERE id = 3", "high"),
    "strength infinite": ("UPDATE edits SET strength = ? WHERE id = 3", float("inf")),
    "addition a word": ("UPDATE edits SET appended = ? WHERE id = 3", "third"),
    "leader unknown": ("UPDATE edits SET leader = ? WHERE id = 3", 77),
    "batch unknown": ("UPDATE edits SET batch = ? WHERE id = 3", 77),
    "undone at no time": ("UPDATE edits SET undone_at = ? WHERE id = 2", "yesterday"),
    "batch at no time": ("UPDATE batches SET finished_at = ?", "12 o'clock"),
    "run unknown": ("UPDATE batches SET run = ?", 12),
    "versions": ("UPDATE runs SET versions = ?", "[]"),
    "versions no JSON": ("UPDATE runs SET versions = ?", "torch 2"),
    "event no JSON": ("UPDATE events SET data = ?", "}"),
    "event without edits": ("UPDATE events SET data = ? WHERE kind = 'undo'", '{"reason": "x"}'),
    "event of words": ("UPDATE events SET data = ? WHERE kind = 'undo'", '{"edits": ["x"], "reason": "x"}'),
    "restraint unknown": ("UPDATE restraints SET module = ?", "lm_head"),
    "look a word": ("UPDATE looks SET holds = ?", "yes"),
    "factors no file": ("UPDATE factors SET data = ? WHERE edit = 3", b"garbage"),
    "factors text": ("UPDATE factors SET data = ? WHERE edit = 3", "text"),
    "factors gone": ("DELETE FROM factors WHERE edit = ?", 3),
}


def tensors(**shapes: tuple[int, ...]) -> bytes:
    return save({f"{MODULE}.{name}": torch.ones(shape) for name, shape in shapes.items()})


DAMAGES |= {
    f"factors {name}": ("UPDATE factors SET data = ? WHERE edit = 3", data)
    for name, data in {
        "of another width": tensors(B=(16, 1), A=(1, 32)),
        "of another height": tensors(B=(8, 1), A=(1, 64)),
        "of two ranks": tensors(B=(16, 2), A=(1, 64)),
        "half": tensors(B=(16, 1)),
        "with a wide key": tensors(B=(16, 1), A=(1, 64), key=(1, 65)),
        "of one dimension": tensors(B=(16,), A=(64,)),
        "of integers": save({f"{MODULE}.{name}": torch.ones(2, 2, dtype=torch.int64) for name in "AB"}),
        "not finite": save({f"{MODULE}.B": torch.full((16, 1), torch.nan), f"{MODULE}.A": torch.ones(1, 64)}),
        "of another module": save({"lm_head.B": torch.ones(50, 1), "lm_head.A": torch.ones(1, 16)}),
        "of a stranger": save({"x": torch.ones(1)}),
    }.items()
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_value_is_one_line_that_names_the_history(path: Path, kind: str, capsys) -> None:
    statement, value = DAMAGES[kind]
    change(path, statement, values=(value,))
    with pytest.raises(HistoryError) as error:
        used(path)
    text = str(error.value)
    assert text.startswith(("history: ", "edit: ")) and "\n" not in text and len(text) < 600, text


def test_a_file_cut_short_or_written_over_is_one_line(path: Path) -> None:
    whole = path.read_bytes()
    for size in (1, 100, 4096, len(whole) // 2, len(whole) - 4096):
        path.write_bytes(whole[:size])
        with pytest.raises(HistoryError):
            used(path)
    for place in range(4096, len(whole), 4096):
        path.write_bytes(whole[:place] + os.urandom(4096) + whole[place + 4096 :])
        try:
            used(path)  # the page may have been free
        except HistoryError as error:
            assert "\n" not in str(error)


def test_the_commands_say_one_line_and_exit_with_2(path: Path, capsys) -> None:
    change(path, "UPDATE runs SET versions = ?", values=("[]",))
    out = path.parent / "r.html"
    assert main(["report", str(path), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "versions of run 1" in said and str(path) in said and not out.exists()


def test_a_link_and_its_target_share_one_lock(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "edits.db")
    (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)
    with session(tmp_path / "link.db") as run:  # the target is made, and the link stays one
        assert (tmp_path / "link.db").is_symlink() and (tmp_path / "edits.db").is_file()
        for other in (tmp_path / "edits.db", tmp_path / "link.db", tmp_path / "folder" / "edits.db"):
            with pytest.raises(HistoryLockedError):
                resumed(other)
        run.edit(request(0))
    with resumed(tmp_path / "edits.db") as run, pytest.raises(HistoryLockedError):
        resumed(tmp_path / "link.db")
    assert History.read(tmp_path / "link.db").last_edit == 1


def in_child(work: Callable[[], object]) -> str:
    """What a forked child says to the work: "done", or its error."""
    inside, outside = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            said = "done"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(outside, said.encode())
        os._exit(0)
    os.close(outside)
    os.waitpid(child, 0)
    said = os.read(inside, 10_000).decode()
    os.close(inside)
    return said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_cannot_write_its_parents_history(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = session(tmp_path / "edits.db")
    run.edit(request(0))
    for work in (lambda: run.edit(request(1)), lambda: run.undo(1), run.restrain, lambda: run.history.update_meta(x=1)):
        said = in_child(work)
        assert said.startswith("HistoryError") and f"belongs to process {os.getpid()}" in said, said
    # closing there neither closes it here nor gives its lock free
    assert in_child(run.close) == "done"
    assert in_child(lambda: History.open(tmp_path / "edits.db")).startswith("HistoryLockedError")
    run.edit(request(1))
    assert run.history.last_edit == 2
    run.close()
    assert in_child(lambda: History.open(tmp_path / "edits.db").close()) == "done"


HALF = """
import os, signal, sys
from peft_prune.session import History
from peft_prune.session import history as module
from tests.session.scripted import session

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

where = sys.argv[2]
if where == "tables":
    module.History._begin_run = killed
else:
    module.os.replace = killed
session(sys.argv[1])
"""


@pytest.mark.parametrize("where", ["tables", "rename"])
def test_a_kill_while_a_history_is_created_does_not_block_its_name(tmp_path: Path, where: str) -> None:
    from pathlib import Path as _Path

    root = _Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", HALF, str(tmp_path / "edits.db"), where]
    done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    assert done.returncode == -9 and not (tmp_path / "edits.db").exists()
    assert list(tmp_path.iterdir()), "something half made is there"
    with session(tmp_path / "edits.db") as run:
        run.edit(request(0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edits.db", "edits.db.lock"]
    used(tmp_path / "edits.db")


def test_creation_never_replaces_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(HistoryError, match="exists"):
        session(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_requests_keep_every_field_through_the_history(path: Path) -> None:
    with History.read(path) as log:
        document = json.loads(log.table("edits")[0]["request"])
        assert log.edits()[0].request == request(0) and document["subject"] == request(0).subject
