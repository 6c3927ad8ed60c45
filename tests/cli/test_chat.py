"""Commands on models that are spoken to: `--ask`, `--serve-dtype`, what is printed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_prune import EditRequest
from peft_prune.cli import main
from peft_prune.session.history import History
from peft_prune.session.verification import Verification, verify
from tests.talking import CHATML, speaking_model, speaking_tokenizer

RECORDS = [
    {"prompt": "note {} sea", "subject": "tone seat", "target_new": "ten", "paraphrase_prompts": ["tan tone seat"]},
    {"prompt": "note {} tea", "subject": "oats", "target_new": "tea", "ask": "plain"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("chat")
    model = speaking_model().to(torch.bfloat16)
    for name, template in (("speaking", CHATML), ("silent", None), ("broken", "{{ raise_exception('not today') }}")):
        model.save_pretrained(found / name)
        speaking_tokenizer(template).save_pretrained(found / name)
    (found / "requests.json").write_text(json.dumps(RECORDS))
    return found


def run(folder: Path, command: str, model: str, *more: object) -> int:
    common = ["--model", folder / model, "--requests", folder / "requests.json", "--set", "num_steps=1"]
    common = common if command == "edit" else common[:4]
    return main([str(word) for word in (command, *common, *more)])


def willingly(model: Any, tokenizer: Any, requests: Sequence[EditRequest], **options: Any) -> list[Verification]:
    """What the model says, as if it gave every target plainly."""
    found = verify(model, tokenizer, requests, **options)
    return [replace(one, answer=own.target_new, holds=True) for one, own in zip(found, requests, strict=True)]


def test_edit_and_evaluate_ask_both_ways_and_say_so(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("peft_prune.session.workspace.verify", willingly)
    out, log = tmp_path / "out", tmp_path / "edits.db"
    words = ("--editor", "ft", "--layers", "1", "--out", out, "--history", log, "--json")
    assert run(folder, "edit", "speaking", *words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["not_in_chat"] == [0]
    with History.read(log) as history:
        assert (history.meta["ask"], history.meta["serve_dtype"]) == ("both", "bfloat16")
        assert [record.request.ask for record in history.edits()] == ["both", "plain"]
        in_chat = history.edit(1).chat
    assert in_chat is not None and not in_chat.holds and in_chat.before
    assert run(folder, "evaluate", "speaking", "--adapter", out, "--json") == 0
    after = json.loads(capsys.readouterr().out)["after"]
    assert (after["efficacy_chat"]["n"], after["generalization_chat"]["n"]) == (1, 1)
    assert run(folder, "evaluate", "speaking", "--adapter", out, "--ask", "plain", "--json") == 0
    assert "efficacy_chat" not in json.loads(capsys.readouterr().out)["after"]
    (tmp_path / "tasks.json").write_text(json.dumps([{"prompt": "tan tone seat", "answer": "ten"}]))
    spoken = ("--adapter", out, "--abilities", tmp_path / "tasks.json", "--ability-ask", "chat")
    assert run(folder, "evaluate", "speaking", *spoken, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ability_ask"] == "chat"
    assert run(folder, "evaluate", "speaking", *spoken) == 0
    assert "Abilities were asked through the model's chat template." in capsys.readouterr().out
    assert main(["history", str(log)]) == 0
    assert "in chat" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "option", "said"),
    [
        ("silent", ("--ask", "chat"), "ask: the model's tokenizer has no chat template; plain is accepted"),
        ("broken", (), "chat template: fails on 'What is it?': not today; ask: plain is accepted"),
        ("speaking", ("--ask", "aloud"), "ask: 'aloud' is not one of plain, chat, both"),
        ("speaking", ("--serve-dtype", "int8"), "serve_dtype: 'int8' is not one of float32, bfloat16, float16, auto"),
    ],
)
def test_what_cannot_be_asked_so_is_one_line_and_nothing_is_written(
    folder: Path, tmp_path: Path, capsys, model: str, option: tuple[str, ...], said: str
) -> None:
    out, log = tmp_path / "out", tmp_path / "edits.db"
    words = ("--editor", "ft", "--layers", "1", "--out", out, "--history", log, *option)
    assert run(folder, "edit", model, *words) != 0
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1
    assert not out.exists() and not log.exists()
