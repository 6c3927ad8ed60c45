"""The demo, with fewer edits than a person would make."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
from peft import PeftModel

from peft_prune.builtin import load_builtin_model
from peft_prune.cli import builtin_demo, main
from peft_prune.consolidation import ConsolidationSettings

FEW_STEPS = ConsolidationSettings(steps=20)


def test_the_demo_compares_saves_draws_and_shows_that_three_roads_agree(
    capsys, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin_demo, "CONSOLIDATION", FEW_STEPS)
    out = tmp_path / "demo"
    arguments = ["demo", "--out", str(out), "--edits", "6", "--items", "8"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["requested"] == 6 and result["applied"] >= 5
    assert list(result["columns"]) == ["before", "edited", "edited with PRUNE", "consolidated"]
    before, edited, restrained, consolidated = result["columns"].values()
    assert before["efficacy"]["value"] <= 0.2 < 0.8 <= edited["efficacy"]["value"]
    assert set(before["abilities"]) == {"reasoning", "summarization", "question_answering", "inference"}
    (layer,) = restrained["layers"].values()
    (raw,) = edited["layers"].values()
    (last,) = consolidated["layers"].values()
    assert layer["condition_number"] <= raw["condition_number"] and raw["rank"] == result["applied"]
    assert last["condition_number"] <= layer["condition_number"] * (1 + 1e-4)
    assert last["delta_spectral_norm"] <= layer["delta_spectral_norm"] * (1 + 1e-4)
    assert result["consolidation"] == {"steps": 20, "left_out": None}
    assert result["held"] == round(6 * edited["efficacy_greedy"]["value"])
    assert result["held_restrained"] == round(6 * restrained["efficacy_greedy"]["value"])
    assert result["held_consolidated"] == round(6 * consolidated["efficacy_greedy"]["value"])
    assert result["held_consolidated"] >= result["held_restrained"]
    assert len(result["shown"]) == 3 and result["story"][0].startswith(("All 6 edits took", "5 of 6 edits took"))
    assert result["course"]["edits"] == [0, 6]
    for course in ("condition", "ability"):
        points = {name: len(values) for name, values in result["course"][course].items()}
        assert points == {"edited": 2, "PRUNE": 2, "consolidated": 1}
    assert result["logit_difference"]["reloaded"] < 1e-4
    assert result["logit_difference"]["merged"] < 1e-3
    assert (out / "course.png").read_bytes().startswith(b"\x89PNG")
    model = PeftModel.from_pretrained(load_builtin_model()[0], out / "adapter", strict_base=True)
    assert model.peft_config["default"].restrained
    assert model.peft_config["default"].consolidated == result["applied"]

    # a second run replaces its own folder, with the story for a person, here one who has no matplotlib
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "6 edits took: right after each edit, the model gave the new answer." in " ".join(output.split())
    assert "Consolidation cost no edit" in output or "Consolidation brought back" in output
    assert max(map(len, output.splitlines()[:-3])) <= 80
    assert "No figure: matplotlib is not installed; pip install 'peft-prune[report]'" in output
    *_, closing = output.strip().splitlines()
    assert main([*shlex.split(closing)[1:], "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert closing.strip().startswith("peft-prune ask builtin ") and answer["before"] != answer["after"][0]


def test_a_consolidation_that_would_lose_edits_is_left_out_and_said_to_be(
    capsys, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nothing but the rest of the model counts, so that the edits go
    careless = ConsolidationSettings(steps=20, beta=1e4, learning_rate=0.05)
    monkeypatch.setattr(builtin_demo, "CONSOLIDATION", careless)
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--edits", "3", "--items", "2"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Consolidation was tried and left out: " in output and "of 3 edits hold after 20 steps" in output
    assert "Last, consolidation trained" not in output and "consolidated" not in output
    result = json.loads((out / "demo.json").read_text())
    assert list(result["columns"]) == ["before", "edited", "edited with PRUNE"]
    assert result["held_consolidated"] is None and result["consolidation"]["steps"] == 0
    assert "edits hold after 20 steps" in result["consolidation"]["left_out"]
    assert result["logit_difference"]["reloaded"] < 1e-4
    config = PeftModel.from_pretrained(load_builtin_model()[0], out / "adapter").peft_config["default"]
    assert config.restrained and config.consolidated == 0


def test_a_folder_that_is_not_the_demos_own_is_left_alone(capsys, tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("option", ["--edits", "--items"])
def test_numbers_below_one_are_refused(capsys, tmp_path, option: str) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), option, "0"]) == 2
    assert option.strip("-") in capsys.readouterr().err
