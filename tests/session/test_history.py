"""The history: atomic, resumable to the bit, readable meanwhile, and safe against a second writer."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from peft_prune.editors import get_editor
from peft_prune.errors import HistoryError, HistoryLockedError
from peft_prune.session import EditSession, History
from peft_prune.session.facts import moments_digest
from tests.session.scene import MODULE, REQUESTS, adapted, moments, resumed, session
from tests.session.test_session import IDS, factors, layer_of, same
from tests.talking import spaced_tokenizer
from tests.tiny import willing

SCHEDULES = [
    {"restraint": "none"},
    {"restraint": "clip", "restrain_on": "every", "restrain_every": 2},
    {"restraint": "linear", "restrain_on": "compounding", "restrain_every": 2},
    {"restraint": "clip", "restrain_on": "threshold", "max_condition_growth": 1.2},
    {"restraint": "log", "restrain_on": "merge", "max_rank": 2},
]


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda config: config.get("restrain_on", "none"))
def test_a_resumed_session_goes_on_as_if_it_had_never_stopped(tmp_path, config) -> None:
    whole = session(tmp_path / "whole.db", model=adapted(**config))
    whole.edit(REQUESTS, batch_size=2)
    parts = session(tmp_path / "parts.db", model=adapted(**config))
    parts.edit(REQUESTS[:2], batch_size=2)
    parts.close()
    for start in (2, 4):
        parts = resumed(tmp_path / "parts.db")
        parts.edit(REQUESTS[start : start + 2], batch_size=2)
        parts.close()
    assert same(factors(parts), factors(whole))
    one, other = layer_of(parts).prune_edit_update["default"], layer_of(whole).prune_edit_update["default"]
    assert (one.edits, one.pending) == (other.edits, other.pending)
    if config.get("restrain_on") != "compounding":
        assert torch.equal(layer_of(parts).raw_update("default").B, layer_of(whole).raw_update("default").B)


def test_resuming_after_undo_and_a_restraint_gives_the_same_bits(tmp_path) -> None:
    run = session(tmp_path / "edits.db", model=adapted(restraint="clip", restrain_on="merge"))
    run.edit(REQUESTS[:4])
    run.undo(2)
    run.restrain()
    run.edit(REQUESTS[4])
    run.close()
    again = resumed(tmp_path / "edits.db")
    assert same(factors(again), factors(run))
    assert again.history.meta["editor"]["name"] == "rome"
    assert again.editor.hyperparameters == run.editor.hyperparameters


def test_an_editor_with_keys_resumes_with_them(tmp_path) -> None:
    editor = get_editor(
        "memit", layers=(1,), v_num_grad_steps=60, clamp_norm_factor=30.0, mom2_update_weight=10.0,
        context_lengths=((3, 2),),
    )  # fmt: skip
    whole = session(tmp_path / "whole.db", editor=editor)
    whole.edit(REQUESTS[:4], batch_size=2)
    parts = session(tmp_path / "parts.db", editor=editor)
    parts.edit(REQUESTS[:2], batch_size=2)
    parts.close()
    parts = resumed(tmp_path / "parts.db")
    parts.edit(REQUESTS[2:4], batch_size=2)
    assert same(factors(parts), factors(whole))
    assert torch.equal(parts.workspace.keys[MODULE], whole.workspace.keys[MODULE])


def test_the_log_says_what_was_asked_done_measured_and_by_whom(tmp_path) -> None:
    run = session(tmp_path / "edits.db", author="Ada", model=adapted(restraint="clip", restrain_every=2))
    run.edit(REQUESTS[:3])
    run.undo(1, reason="wrong")
    log = History.read(tmp_path / "edits.db")
    records = log.edits()
    assert [record.request for record in records] == REQUESTS[:3]
    assert records[0].undone_by == "Ada" and records[0].undone_reason == "wrong" and not records[0].stands
    (one,) = log.table("runs")
    assert one["author"] == "Ada" and one["pid"] == os.getpid() and "torch" in one["versions"]
    assert log.meta["base"] == run.history.meta["base"] is not None
    figures = log.table("figures")
    assert [row["batch"] for row in figures] == [1, 2, 3] and figures[2]["edits"] == 3
    assert figures[2]["output_perturbation"] > 0 and figures[2]["condition_number"] > 1
    assert [row["module"] for row in log.table("restraints")] == [MODULE]
    assert [row["kind"] for row in log.table("events") if row["kind"] != "look"] == ["undo"]
    own = log.factors(2).updates[MODULE]
    assert own.rank == 1 and own.shape == (16, 64)
    with pytest.raises(ValueError, match="table: 'secrets'"):
        log.table("secrets")


def test_it_can_be_read_while_a_session_writes_it(tmp_path) -> None:
    run = session(tmp_path / "edits.db")
    log = History.read(tmp_path / "edits.db")
    assert log.edits() == []
    run.edit(REQUESTS[0])
    assert len(log.edits()) == 1
    with pytest.raises(HistoryError, match="readonly"):
        log.update_meta(note="no")


def test_a_second_writer_gets_a_clear_error(tmp_path) -> None:
    run = session(tmp_path / "edits.db")
    run.edit(REQUESTS[0])
    with pytest.raises(HistoryLockedError, match="is being written by another session"):
        resumed(tmp_path / "edits.db")
    code = (
        "import sys; from peft_prune.session import History; from peft_prune.errors import HistoryLockedError\n"
        "try: History.open(sys.argv[1])\n"
        "except HistoryLockedError: print('locked')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "edits.db")], capture_output=True, text=True, check=True
    )
    assert "locked" in result.stdout
    run.close()
    assert resumed(tmp_path / "edits.db").history.last_edit == 1


def test_an_existing_history_is_not_overwritten(tmp_path) -> None:
    session(tmp_path / "edits.db").close()
    with pytest.raises(HistoryError, match=r"exists; use EditSession\.resume"):
        session(tmp_path / "edits.db")
    with pytest.raises(HistoryError, match="does not exist"):
        resumed(tmp_path / "none.db")


def test_the_history_of_another_model_or_moment_is_refused(tmp_path) -> None:
    session(tmp_path / "edits.db").close()
    with pytest.raises(HistoryError, match="belongs to GPT2LMHeadModel"):
        EditSession.resume(tmp_path / "edits.db", willing("gpt2", seed=1), spaced_tokenizer(), statistics=moments())
    own = moments()
    own.moments[MODULE].mul_(2)
    try:
        with pytest.raises(HistoryError, match="another second moment"):
            resumed(tmp_path / "edits.db")
    finally:
        own.moments[MODULE].div_(2)
    assert len(moments_digest(own.moments)[MODULE]) == 3
    resumed(tmp_path / "edits.db").close()


def test_a_file_that_is_no_history_or_a_damaged_one_is_refused(tmp_path) -> None:
    (tmp_path / "text.db").write_text("this is no database, however long it may be" * 100)
    with pytest.raises(HistoryError, match=r"text\.db"):
        resumed(tmp_path / "text.db")
    with pytest.raises(HistoryError, match=r"text\.db"):
        History.read(tmp_path / "text.db")
    sqlite3.connect(tmp_path / "empty.db").execute("CREATE TABLE x (y)").connection.close()
    with pytest.raises(HistoryError, match="is no history of edits"):
        History.read(tmp_path / "empty.db")


def test_a_history_that_cannot_be_written_is_an_error_before_the_first_edit(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoryError, match="cannot be written"):
        session(tmp_path / "file" / "edits.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write read-only files")
def test_a_read_only_history_is_an_error(tmp_path) -> None:
    session(tmp_path / "edits.db").close()
    (tmp_path / "edits.db").chmod(0o444)
    with pytest.raises(HistoryError, match="readonly"):
        resumed(tmp_path / "edits.db")


def test_a_full_disk_loses_the_batch_alone(tmp_path) -> None:
    run = session(tmp_path / "edits.db")
    run.edit(REQUESTS[:2])
    before, logits = factors(run), run.model(IDS).logits
    pages = run.history._connection.execute("PRAGMA page_count").fetchone()[0]
    run.history._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(HistoryError, match="full"):
        for _ in range(20):
            run.edit(REQUESTS[2:])
    standing = len(run.history.edits(standing=True))
    assert layer_of(run).rank("default") == standing
    run.history._connection.execute("PRAGMA max_page_count = 1000000")
    run.undo([record.id for record in run.history.edits(standing=True)[2:]])
    assert same(factors(run), before) and torch.equal(run.model(IDS).logits, logits)
    assert run.edit(REQUESTS[2])[0].applied


CHILD = """
import os, signal, sys, time, torch
torch.set_num_threads(1)
from pathlib import Path
from tests.session.scene import REQUESTS, adapted, moments, resumed, session
path = Path(sys.argv[1])
moments()

def work(pipe):
    run = resumed(path) if path.exists() else session(path, model=adapted(restraint="clip", restrain_every=2))
    os.write(pipe, b"r")
    for number in range(run.history.last_edit, 12):
        run.edit(REQUESTS[number % 5])
        os.write(pipe, b".")
    os.write(pipe, b"e")

for line in sys.stdin:
    inside, outside = os.pipe()
    child = os.fork()
    if child == 0:
        work(outside)
        os._exit(0)
    os.close(outside)
    said = os.read(inside, 1)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(inside, 100):
        said += more
    os.close(inside)
    print("said", said.decode(), flush=True)
"""


def test_killing_the_process_at_any_instant_loses_at_most_the_batch_in_flight(tmp_path) -> None:
    path, rng, ended = tmp_path / "edits.db", random.Random(0), 0
    reference = session(tmp_path / "reference.db", model=adapted(restraint="clip", restrain_every=2))
    for number in range(12):
        reference.edit(REQUESTS[number % 5])
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as killer:
        assert killer.stdin is not None and killer.stdout is not None
        before = 0
        kills = 0
        while kills < 22 or not ended:
            kills += 1
            # on a busy machine the last ones may need longer to come to the end
            print(rng.uniform(0.0, 0.6 if kills < 22 else 5.0), file=killer.stdin, flush=True)
            said = next(line for line in killer.stdout if line.startswith("said "))
            assert said.startswith("said r"), said
            log = History.read(path)
            ids = [record.id for record in log.edits()]
            # the one in flight may have been written before it could say so
            assert ids == list(range(1, len(ids) + 1)) and before + said.count(".") <= len(ids)
            assert len(ids) <= before + said.count(".") + 1
            assert log._execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            log.close()
            before = len(ids)
            if before == 12:
                _check_equal(path, reference)
                ended, before = ended + 1, 0
                for name in ("edits.db", "edits.db-wal", "edits.db-shm"):
                    (tmp_path / name).unlink(missing_ok=True)
        killer.stdin.close()
    assert ended >= 1


def _check_equal(path: Path, reference: EditSession) -> None:
    again = resumed(path)
    assert same(factors(again), factors(reference))
    again.close()
