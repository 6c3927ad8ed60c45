"""Bad records and odd texts on the command line: left out and listed, and printed as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from peft_prune.cli.models import print_json
from peft_prune.cli.plain import plain
from tests.cli.test_commands import SUBJECTS, edit, folder, record, run  # noqa: F401

TOO_LONG = " ".join(["sea"] * 40)


@pytest.fixture
def mixed(folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    """Four good records, among them one without a subject and one whose paraphrase does not fit the model."""
    records = [record(subject) for subject in SUBJECTS]
    records[1]["requested_rewrite"].pop("subject")  # type: ignore[attr-defined]
    records.insert(2, {**record("sea net"), "paraphrase_prompts": [TOO_LONG]})
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(records))
    return path


def test_a_bad_record_fails_before_any_work_and_skip_lists_it_and_goes_on(capsys, folder, mixed, tmp_path) -> None:  # noqa: F811
    options = ["edit", "--model", folder / "model", "--requests", mixed, "--layers", 1, "--out", tmp_path / "out"]
    options += ["--set", "v_num_grad_steps=40", "--set", "clamp_norm_factor=20", "--set", "context_lengths=[[4, 3]]"]
    code, _, errors = run(capsys, *options, "--stats-text", folder / "texts.json")
    assert code == 2 and "mixed.json: record 1: subject: is missing" in errors and not (tmp_path / "out").exists()
    code, output, errors = run(
        capsys, *options, "--stats-text", folder / "texts.json", "--on-bad-record", "skip", "--json"
    )
    assert code == 0, errors
    assert "1 record is left out" in errors and "  record 1: subject: is missing" in errors
    document = json.loads(output)
    assert document["requested"] == 4 and document["bad_records"] == [{"record": 1, "reason": "subject: is missing"}]
    assert all(one["record"] in (0, 2, 3, 4) for one in document["failed"])


def test_evaluate_and_locate_leave_out_what_the_model_cannot_take(capsys, folder, mixed, tmp_path) -> None:  # noqa: F811
    edit(capsys, folder, tmp_path / "adapter", "--restraint", "none")
    options = ["evaluate", "--model", folder / "model", "--adapter", tmp_path / "adapter"]
    code, output, errors = run(capsys, *options, "--requests", mixed, "--on-bad-record", "skip", "--json")
    assert code == 0, errors
    document = json.loads(output)
    assert document["n_requests"] == 3 and [one["record"] for one in document["bad_records"]] == [1, 2]
    assert "do not fit the model's 32 positions" in document["bad_records"][1]["reason"]
    records = [one for index, one in enumerate(json.loads(mixed.read_text())) if index != 1]
    mixed.write_text(json.dumps(records))
    code, _, errors = run(capsys, *options, "--requests", mixed)
    assert code == 2 and "mixed.json: record 1: prompt 1: " in errors
    code, _, errors = run(capsys, "locate", "--model", folder / "model", "--requests", mixed, "--on-bad-record", "drop")
    assert code == 2 and "on_bad_record: 'drop' is not one of fail, skip" in errors


def test_history_prints_a_subject_with_brackets_as_it_is(capsys, folder, tmp_path) -> None:  # noqa: F811
    path = tmp_path / "odd.json"
    path.write_text(json.dumps([record("sane ant"), record("x [/b] y", "[red]ten")]))
    options = ["edit", "--model", folder / "model", "--requests", path, "--layers", 1, "--out", tmp_path / "out"]
    options += ["--set", "v_num_grad_steps=40", "--set", "clamp_norm_factor=20", "--set", "context_lengths=[[4, 3]]"]
    run(capsys, *options, "--stats-text", folder / "texts.json", "--history", tmp_path / "edits.db")
    code, output, errors = run(capsys, "history", tmp_path / "edits.db")
    assert code == 0, errors
    shown = output.replace(" ", "").replace("\n", "")
    assert "[/b]" in shown and "[red]" in shown


def test_a_cell_shows_what_would_act_on_the_terminal(capsys) -> None:
    table = Table(title=plain("[b]"))
    table.add_column("a")
    table.add_row(plain("x [/b] \x1b[31m \x07 \u202e \u2067 \ud800 é 京"))
    Console(width=80).print(table)
    output = capsys.readouterr().out
    assert "[b]" in output and r"x [/b] \x1b[31m \x07 \u202e \u2067 \ud800 é 京" in output and "\x1b[31m" not in output


def test_json_holds_no_character_that_acts_on_the_terminal(capsys) -> None:
    content = {"a": "x\x1b[31m\x9b\u202e\ud800 é"}
    print_json(content)
    output = capsys.readouterr().out
    assert json.loads(output) == content and "é" in output
    assert not set(output) & {"\x1b", "\x9b", "\u202e", "\ud800"}
