"""Models in GGUF files: every command that loads a model takes one by --gguf-file."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from peft_prune.cli import main
from peft_prune.cli.app import GROUPS
from peft_prune.cli.models import load_model, load_tokenizer
from peft_prune.cli.places import in_gguf
from peft_prune.models.fingerprint import base_fingerprint, same_base
from tests.export.tiny_gguf import write_tiny_gguf
from tests.talking import WORDS, spaced_tokenizer
from tests.tiny import willing

from .test_commands import SUBJECTS, record, run

pytest.importorskip("gguf")
NAME = "tiny.gguf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GGUF file and nothing else, and the same model as a checkpoint, with requests."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "gguf").mkdir()
    model, tokenizer = willing("llama"), spaced_tokenizer()
    write_tiny_gguf(model, tokenizer, folder / "gguf" / NAME)
    model.save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    (folder / "requests.json").write_text(json.dumps([record(subject) for subject in SUBJECTS[:2]]))
    return folder


def test_the_file_gives_the_models_own_weights_and_tokens(folder: Path) -> None:
    place = in_gguf(str(folder / "gguf"), NAME)
    found, plain = load_model(place), AutoModelForCausalLM.from_pretrained(folder / "plain")
    ids = torch.tensor([[1, 5, 9, 4]])
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, plain(ids).logits)
    assert same_base(base_fingerprint(found), base_fingerprint(plain))
    text = " ".join(WORDS[:6])
    assert load_tokenizer(place)(text)["input_ids"] == spaced_tokenizer()(text)["input_ids"]


def test_an_edit_of_it_is_evaluated_and_merged_into_a_plain_checkpoint(capsys, folder: Path, tmp_path: Path) -> None:
    model = ["--model", folder / "gguf", "--gguf-file", NAME]
    asked = ["--requests", folder / "requests.json"]
    settings = ["--editor", "rome", "--layers", 1, "--set", "mom2_adjustment=false", "--set", "v_num_grad_steps=40"]
    code, _, errors = run(capsys, "edit", *model, *asked, *settings, "--out", tmp_path / "adapter", "--json")
    assert code == 0, errors
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "gguf"
    code, output, errors = run(capsys, "evaluate", *model, *asked, "--adapter", tmp_path / "adapter", "--json")
    assert code == 0, errors
    assert json.loads(output)["after"]["efficacy"]["value"] > 0
    # the adapter fits the checkpoint that the file was made of
    code, _, errors = run(
        capsys, "evaluate", "--model", folder / "plain", *asked, "--adapter", tmp_path / "adapter", "--json"
    )
    assert code == 0, errors
    code, _, errors = run(capsys, "merge", tmp_path / "adapter", *model, "--out", tmp_path / "merged")
    assert code == 0, errors
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged).__name__ == "LlamaForCausalLM" and not hasattr(merged.config, "quantization_config")


def test_every_command_that_loads_a_model_takes_the_option() -> None:
    # these read files and load no model, or bring their own
    without = {"audit", "demo", "diff", "doctor", "editors", "history", "inspect", "push"}
    for command in (command for commands in GROUPS.values() for command in commands):
        assert ("gguf_file" in inspect.signature(command).parameters) == (command.__name__ not in without)


def line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command says of bad input; it must be one line."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr().err.strip()
    assert code == 2 and "\n" not in said, said
    return said


def test_bad_files_end_in_one_line(capsys, folder: Path, tmp_path: Path) -> None:
    import gguf

    held = tmp_path / "held"
    held.mkdir()
    (held / "text.gguf").write_text("no such format")
    writer = gguf.GGUFWriter(held / "martian.gguf", "martian")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    whole = (folder / "gguf" / NAME).read_bytes()
    (held / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (held / "begun.gguf").write_bytes(whole[:40])
    rest = ["--requests", folder / "requests.json", "--out", tmp_path / "out", "--layers", 1]
    edit = ["edit", "--model", held, *rest]
    assert "has no file other.gguf; it holds begun.gguf, cut.gguf" in line(capsys, *edit, "--gguf-file", "other.gguf")
    assert "is no GGUF file" in line(capsys, *edit, "--gguf-file", "text.gguf")
    assert "martian" in line(capsys, *edit, "--gguf-file", "martian.gguf")
    assert "cut.gguf" in line(capsys, *edit, "--gguf-file", "cut.gguf")
    assert "begun.gguf" in line(capsys, *edit, "--gguf-file", "begun.gguf")
    assert "by --gguf-file, such as begun.gguf" in line(capsys, *edit)
    assert "--gguf-file martian.gguf" in line(capsys, "edit", "--model", held / "martian.gguf", *rest)
    assert "needs a model's folder" in line(capsys, "edit", "--model", "builtin", *rest, "--gguf-file", "a.gguf")
    assert "needs --model" in line(capsys, "report", tmp_path, "--out", tmp_path / "r.html", "--gguf-file", "a.gguf")
    assert not (tmp_path / "out").exists()
