"""`compose` and `diff`, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.cli.test_commands import run
from tests.session.scripted import MODULE
from tests.session.test_composition import FIRST, SECOND, close, delta, raw, restrained, team
from tests.talking import spaced_tokenizer
from tests.tiny import tiny_gpt2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teams")
    tiny_gpt2().save_pretrained(folder / "model")
    spaced_tokenizer().save_pretrained(folder / "model")
    for name, facts in (("first", FIRST), ("second", SECOND)):
        team(folder / f"{name}.db", facts, save=folder / name)
    team(folder / "third.db", [("sane ant", "sea")])
    team(folder / "foreign.db", SECOND, model=tiny_gpt2(seed=9), save=folder / "foreign")
    return folder


def loaded(place: Path, adapter: Path) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32).eval()
    return PeftModel.from_pretrained(base, adapter, strict_base=True)


def test_compose_subtracts_and_prints_its_contract(capsys, place: Path, tmp_path: Path) -> None:
    arguments = ["compose", place / "first.db", place / "second.db", "--model", place / "model", "--weights", "1,-1"]
    code, output, errors = run(capsys, *arguments, "--out", tmp_path / "out", "--json")
    assert code == 0, errors
    document = json.loads(output)
    assert set(document) == {"adapter", "adapters", "weights", "conflicts", "warnings", "layers"}
    assert document["adapters"] == [str(place / "first.db"), str(place / "second.db")]
    assert document["weights"] == [1.0, -1.0]
    assert document["conflicts"] == document["warnings"] == []
    expected = restrained(raw(FIRST) - raw(SECOND))
    assert close(delta(loaded(place, tmp_path / "out")), expected)
    norm = float(torch.linalg.matrix_norm(expected, 2))
    assert document["layers"][MODULE]["delta_spectral_norm"] == pytest.approx(norm, rel=1e-4)
    # nothing of the histories is in what is shared
    assert not any(b"sane ant" in file.read_bytes() for file in (tmp_path / "out").iterdir())
    code, _, errors = run(capsys, *arguments, "--out", tmp_path / "out")
    assert code == 2 and "exists" in errors


def test_compose_finds_the_base_that_the_first_adapter_names(capsys, place: Path, tmp_path, monkeypatch) -> None:
    base = AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32).eval()
    team(tmp_path / "named.db", FIRST, model=base, save=tmp_path / "named", restraint="none")
    monkeypatch.chdir(place)
    for given in ("named", "named.db"):
        out = tmp_path / f"out-{given}"
        code, _, errors = run(capsys, "compose", tmp_path / given, "--weights", "-2", "--out", out)
        assert code == 0, errors
        assert close(delta(loaded(place, out)), -2 * raw(FIRST))
    code, _, errors = run(capsys, "compose", place / "first", "--out", tmp_path / "out")
    assert code == 2 and "give it with --model" in errors


def test_compose_warns_of_restrained_files_and_lists_conflicts_that_are_kept(capsys, place, tmp_path: Path) -> None:
    options = ["--model", place / "model", "--out"]
    code, output, errors = run(capsys, "compose", place / "first", place / "second", *options, tmp_path / "files")
    assert code == 0 and "only the restrained factors are known" in errors and "Composed adapter in" in output
    assert close(delta(loaded(place, tmp_path / "files")), restrained(raw(FIRST)) + restrained(raw(SECOND)))
    both = ["compose", place / "first.db", place / "third.db", *options]
    code, _, errors = run(capsys, *both, tmp_path / "conflict")
    assert code == 2 and "edit 1 says 'ten' of 'sane ant'" in errors and errors.count("\n") == 1
    assert not (tmp_path / "conflict").exists()
    code, output, _ = run(capsys, *both, tmp_path / "conflict", "--on-conflict", "keep")
    assert code == 0 and "kept in spite of a conflict: " in output


def test_diff_shows_layers_and_edits_to_people_and_programs(capsys, place: Path) -> None:
    code, output, errors = run(capsys, "diff", place / "first.db", place / "second.db")
    assert code == 0, errors
    assert "2 in the first alone, 2 in the second alone, 1 in both, 0 in conflict" in output
    code, output, _ = run(capsys, "diff", place / "first.db", place / "third.db")
    assert code == 0 and "conflict: " in output and "'sane ant'" in output
    code, output, _ = run(capsys, "diff", place / "first.db", place / "second.db", "--json")
    document = json.loads(output)
    layer = document["layers"][MODULE]
    assert layer["ranks"] == [3, 3] and len(layer["input_cosines"]) == 3
    assert layer["difference"] == pytest.approx(float((raw(FIRST) - raw(SECOND)).norm()), rel=1e-4)
    assert document["raw"] == [True, True] and document["edits"]["shared"][0][0]["subject"] == "oats"
    code, output, _ = run(capsys, "diff", place / "first", place / "first.db", "--json")
    assert code == 0 and json.loads(output)["edits"] is None
    code, output, _ = run(capsys, "diff", place / "first", place / "first.db")
    assert code == 0 and "differ by the restraint as well" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first.db", "second.db", "--weights", "1"], "weights: 1 given for 2 adapters"),
        (["first.db", "second.db", "--weights", "1,x"], "weights: 'x' is no number"),
        (["first.db", "second.db", "--weights", "1,nan"], "weights: nan must be a finite number"),
        (["first.db", "second.db", "--weights", "-1,"], "weights: '' is no number"),
        (["first.db", "second.db", "--restraint", "logg"], "restraint: 'logg' is unknown"),
        (["first.db", "second.db", "--on-conflict", "both"], "on_conflict: 'both' is not one of"),
        (["first.db", "nowhere"], "does not exist"),
        (["first.db", "model"], "holds no adapter_config.json"),
        (["first.db", "model/config.json"], "history: "),
        (["first.db", "foreign"], "different bases"),
        (["foreign.db"], "belongs to "),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, place: Path, tmp_path: Path, arguments, message) -> None:
    paths = [place / one if (place / one).exists() or one == "nowhere" else one for one in map(str, arguments)]
    code, output, errors = run(capsys, "compose", *paths, "--model", place / "model", "--out", tmp_path / "out")
    assert code == 2 and message in errors and errors.count("\n") == 1 and not output
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("other", "message"), [("foreign", "different bases"), ("nowhere", "does not exist")])
def test_diff_refuses_what_it_cannot_compare(capsys, place: Path, other: str, message: str) -> None:
    code, output, errors = run(capsys, "diff", place / "first", place / other)
    assert code == 2 and message in errors and errors.count("\n") == 1 and not output


def test_an_output_is_no_input(capsys, place: Path) -> None:
    arguments = ["--model", place / "model", "--overwrite", "--out"]
    for out in (place / "first", place / "model", place):
        code, _, errors = run(capsys, "compose", place / "first", place / "second.db", *arguments, out)
        assert code == 2 and "out: " in errors
    assert (place / "first" / "adapter_model.safetensors").is_file()
