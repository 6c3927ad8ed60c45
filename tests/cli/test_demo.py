"""The demo, with fewer edits than a person would make."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
from peft import PeftModel

from peft_prune.builtin import load_builtin_model
from peft_prune.cli import main


def test_the_demo_compares_saves_draws_and_shows_that_three_roads_agree(
    capsys, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    arguments = ["demo", "--out", str(out), "--edits", "6", "--items", "8"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["requested"] == 6 and result["applied"] >= 5
    assert list(result["columns"]) == ["before", "edited", "edited with PRUNE"]
    before, edited, restrained = result["columns"].values()
    assert before["efficacy"]["value"] <= 0.2 < 0.8 <= edited["efficacy"]["value"]
    assert set(before["abilities"]) == {"reasoning", "summarization", "question_answering", "inference"}
    (layer,) = restrained["layers"].values()
    (raw,) = edited["layers"].values()
    assert layer["condition_number"] <= raw["condition_number"] and raw["rank"] == result["applied"]
    assert result["held"] == round(6 * edited["efficacy_greedy"]["value"])
    assert result["held_restrained"] == round(6 * restrained["efficacy_greedy"]["value"])
    assert len(result["shown"]) == 3 and result["story"][0].startswith(("All 6 edits took", "5 of 6 edits took"))
    assert result["course"]["edits"] == [0, 6]
    assert all(len(values) == 2 for values in result["course"]["condition"].values())
    assert result["logit_difference"]["reloaded"] < 1e-4
    assert result["logit_difference"]["merged"] < 1e-3
    assert (out / "course.png").read_bytes().startswith(b"\x89PNG")
    model = PeftModel.from_pretrained(load_builtin_model()[0], out / "adapter", strict_base=True)
    assert model.peft_config["default"].restrained

    # a second run replaces its own folder, with the story for a person, here one who has no matplotlib
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "6 edits took: right after each edit, the model gave the new answer." in " ".join(output.split())
    assert max(map(len, output.splitlines()[:-3])) <= 80
    assert "No figure: matplotlib is not installed; pip install 'peft-prune[report]'" in output
    *_, closing = output.strip().splitlines()
    assert main([*shlex.split(closing)[1:], "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert closing.strip().startswith("peft-prune ask builtin ") and answer["before"] != answer["after"][0]


def test_a_folder_that_is_not_the_demos_own_is_left_alone(capsys, tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("option", ["--edits", "--items"])
def test_numbers_below_one_are_refused(capsys, tmp_path, option: str) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), option, "0"]) == 2
    assert option.strip("-") in capsys.readouterr().err
