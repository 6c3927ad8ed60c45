"""Commands that a launcher has started in two processes."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from peft_prune.builtin import edit_requests
from tests.processes.launching import launched, side_by_side

COMMAND = ["-m", "peft_prune.cli"]


def test_two_processes_edit_and_one_of_them_writes_and_speaks(tmp_path: Path) -> None:
    requests = tmp_path / "requests.json"
    requests.write_text(json.dumps(edit_requests(2)))
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"Text number {number} tells of the sea." for number in range(40)))
    options = {"requests": requests, "stats-text": texts, "out": tmp_path / "out", "history": tmp_path / "edits.db"}
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = launched(*COMMAND, "edit", "--model", "builtin", *given, "--editor", "rome", "--batch-size", "2", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert (told["requested"], told["applied"]) == (2, 2)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    with closing(sqlite3.connect(tmp_path / "edits.db")) as history:
        assert history.execute("SELECT count(*) FROM edits WHERE status = 'applied'").fetchone() == (2,)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".peft-prune-")]
    given = ["--model", "builtin", "--texts", texts, "--out", tmp_path / "consolidated", "--steps", "2", "--json"]
    done = launched(*COMMAND, "consolidate", options["history"], *given, "--learning-rate", "1e-5")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert (told["edits"], told["steps"], told["held"]["after"]) == (2, 2, 2)
    assert (tmp_path / "consolidated" / "adapter_model.safetensors").is_file()


def test_what_is_wrong_is_said_once_and_nothing_is_written(tmp_path: Path) -> None:
    requests, out = tmp_path / "requests.json", tmp_path / "out"
    requests.write_text(json.dumps(edit_requests(1)))
    out.mkdir()
    (out / "mine").touch()
    options = ["--model", "builtin", "--requests", str(requests), "--out", str(out)]
    (code, lines), (other, others) = side_by_side([*COMMAND, "edit", *options], output="stderr")
    assert code == 2
    assert [line for line in lines if line.startswith("peft-prune:")] == [
        f"peft-prune: out: {out} exists; give another folder, or --overwrite"
    ]
    # it leaves the word, and the exit code, to rank 0
    assert (other, [line for line in others if line.startswith("peft-prune:")]) == (0, [])
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_command_that_shares_nothing_out_runs_once(tmp_path: Path) -> None:
    (code, lines), (other, others) = side_by_side([*COMMAND, "editors"])
    assert (code, other, others) == (0, 0, [])
    assert any("memit" in line for line in lines)
