"""`--config FILE.yaml`, and the page of all options."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import typer

from peft_prune.cli import main
from peft_prune.cli.app import app
from peft_prune.cli.command import SHARED
from peft_prune.cli.config_file import read_settings
from peft_prune.cli.progress import Lines
from peft_prune.editors import get_editor
from peft_prune.editors.hyperparameters import SEARCH
from peft_prune.moving import SECONDS
from tests.tiny import tiny_gpt2

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "commands.py"


def command(name: str) -> object:
    return typer.main.get_command(app).commands[name]


def settings(tmp_path: Path, text: str, name: str = "edit") -> dict[str, object]:
    (tmp_path / "own.yaml").write_text(text)
    return read_settings(tmp_path / "own.yaml", command(name))


def test_values_stand_as_they_would_on_a_command_line(tmp_path: Path) -> None:
    text = (
        "batch_size: 3\nrestrain-on: merge\nlayers: [1, 2]\noverwrite: true\nset: {a: [[1, 2]], b: no, c: x}\nlimit:\n"
    )
    assert settings(tmp_path, text) == {
        "batch_size": "3",
        "restrain_on": "merge",
        "layers": "1,2",
        "overwrite": True,
        "set_": ["a=[[1, 2]]", "b=false", "c=x"],
    }
    named = settings(tmp_path, "history: edits.db\nedits: [3, 4]\n", "undo")
    assert named == {"history": "edits.db", "edits": ["3", "4"]}
    assert settings(tmp_path, "json: true", "undo") == {"json_output": True}
    assert settings(tmp_path, "") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed: 3\nmodel: m\nfast: 1", "speed, fast: no option of edit; known are alpha, ask, author, batch-size"),
        ("config: other.yaml", "config: no option of edit"),
        ("- model", "must hold one mapping of options to values"),
        ("model: [", "cannot be read"),
        ("overwrite: 3", "overwrite: 3 must be true or false"),
        ("model: {a: 1}", "model: a mapping is given"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(capsys, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    code = main(["edit", "--config", str(tmp_path / "own.yaml")])
    errors = capsys.readouterr().err
    assert code == 2 and message in errors and errors.count("\n") == 1


def test_the_command_line_overrules_the_file_and_both_together_are_enough(capsys, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"model: builtin\nrequests: {tmp_path / 'none.json'}\nout: {tmp_path / 'out'}\n")
    file = ("--config", str(tmp_path / "own.yaml"))
    assert main(["edit", *file]) == 2
    assert "none.json" in capsys.readouterr().err
    assert main(["edit", "--requests", str(tmp_path / "other.json"), *file]) == 2
    assert "other.json" in capsys.readouterr().err
    assert main(["edit", *file, "--alpha", "x"]) == 2
    assert "--alpha" in capsys.readouterr().err
    assert main(["edit", "--config", str(tmp_path / "nowhere.yaml")]) == 2
    assert "nowhere.yaml cannot be read" in capsys.readouterr().err


def test_every_command_takes_the_shared_options() -> None:
    for one in typer.main.get_command(app).commands.values():
        assert set(SHARED) <= {parameter.name for parameter in one.params}


def test_the_page_of_all_options_is_what_the_code_has() -> None:
    text = REFERENCE.with_suffix(".md").read_text(encoding="utf-8")
    assert text == runpy.run_path(str(REFERENCE))["page"](), "run docs/reference/commands.py"
    for one in typer.main.get_command(app).commands.values():
        for parameter in one.params:
            assert all(f"`{word}`" in text for word in parameter.opts if word.startswith("--"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "edits: nothing is given; say which by numbers, or by --all, or by --since"),
        (("3", "--all"), "edits: numbers and --all"),
        (("--since", "soon"), "since: 'soon' is neither the number of an edit nor a day"),
    ],
)
def test_undo_is_told_in_one_way_which_edits(capsys, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code = main(["undo", str(tmp_path / "edits.db"), *arguments, "--model", "builtin", "--out", str(tmp_path / "out")])
    errors = capsys.readouterr().err
    assert code == 2 and message in errors and errors.count("\n") == 1


def test_progress_off_a_terminal_is_a_line_every_few_seconds(capsys) -> None:
    now = [0.0]
    tell = Lines(lambda: now[0])
    for done in range(1, 8):
        now[0] = done * SECONDS / 2
        tell("Editing", done, 8)
    assert capsys.readouterr().err == "Editing: 2 of 8\nEditing: 4 of 8\nEditing: 6 of 8\n"


def test_the_doctor_names_what_keeps_a_model_from_being_edited(capsys, tmp_path: Path) -> None:
    tiny_gpt2().config.save_pretrained(tmp_path / "bare")
    assert main(["doctor", str(tmp_path / "bare"), "--editor", "rome", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["can_be_edited"] is False and told["files"] is None and told["tokenizer"] is None
    assert any("holds no weights as safetensors" in problem for problem in told["problems"])
    assert any("tokenizer: " in problem and "holds none" in problem for problem in told["problems"])
    assert [one["layer"] for one in told["edited"].values()] == list(get_editor("rome", **SEARCH).default_layers(3))
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
