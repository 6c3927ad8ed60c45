"""`--no-second-try`: what did not take is not tried again, on resuming neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peft_prune.cli import main
from peft_prune.session.history import History
from tests.talking import spaced_tokenizer
from tests.tiny import willing


@pytest.mark.parametrize("option", ["--second-try", "--no-second-try"])
def test_an_edit_that_did_not_take_is_tried_again_unless_the_command_says_no(option: str, tmp_path: Path) -> None:
    willing("gpt2").save_pretrained(tmp_path / "model")
    spaced_tokenizer().save_pretrained(tmp_path / "model")
    record = {"prompt": "note sea {}", "subject": "sane ant", "target_new": "ten"}
    (tmp_path / "requests.json").write_text(json.dumps([record]))
    common = ["--model", tmp_path / "model", "--requests", tmp_path / "requests.json", "--out", tmp_path / "out"]
    words = ["edit", *common, "--editor", "ft", "--set", "lr=1e-12", "--history", tmp_path / "edits.db", option]
    assert main([str(word) for word in words]) != 0
    main([str(word) for word in ["resume", tmp_path / "edits.db", *common]])
    with History.read(tmp_path / "edits.db") as history:
        retried = [record.stronger is not None for record in history.edits()]
    assert retried == [option == "--second-try"] * 2
