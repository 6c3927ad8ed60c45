"""`edit --explain` says what was chosen and why; `--author` is who the log names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peft_prune.cli import main
from peft_prune.session.history import History
from tests.cli.test_chat import willingly
from tests.talking import speaking_model, speaking_tokenizer


def test_what_was_chosen_is_explained_and_the_log_names_its_author(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speaking_model().save_pretrained(tmp_path / "model")
    speaking_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr("peft_prune.session.workspace.verify", willingly)
    record = {"prompt": "note {} sea", "subject": "tone seat", "target_new": "ten"}
    (tmp_path / "requests.json").write_text(json.dumps([record] * 3))
    common = ["--model", tmp_path / "model", "--requests", tmp_path / "requests.json", "--overwrite"]
    quick = ["--editor", "ft", "--set", "num_steps=1", "--batch-size", "2", "--layers", "1"]
    log, out = tmp_path / "edits.db", tmp_path / "out"
    words = ["edit", *common, *quick, "--out", out, "--history", log, "--explain", "--author", "A. Person"]
    assert main([str(word) for word in words]) == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().err.splitlines() if ": " in line)
    assert said["layers"].startswith("1: as given")
    assert said["batches"].startswith("2 of at most 2")
    assert said["second moment"] == "none: this editor does without"
    assert said["asked"] == "plainly and in chat: the model has a chat template (--ask says otherwise)"
    assert said["restraint"].startswith("log with α = 1.2, every 10 edits")
    assert said["consolidated"].startswith("no, that is for 20 restrained edits or more")
    assert "nothing was published for" in said["settings"] and said["verified"].endswith("float32")
    monkeypatch.setenv("PEFT_PRUNE_AUTHOR", "B. Person")
    undo = ["undo", log, "1", "--model", tmp_path / "model", "--out", tmp_path / "undone"]
    assert main([str(word) for word in undo]) == 0
    with History.read(log) as history:
        assert [run["author"] for run in history._rows("runs", "ORDER BY id")] == ["A. Person", "B. Person"]
        assert {edit.undone_by for edit in history.edits() if edit.undone_at} == {"B. Person"}
