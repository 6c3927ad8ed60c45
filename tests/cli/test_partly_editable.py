"""`peft-prune edit` and `locate` on models of which some parts can be edited and others cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import PreTrainedModel

from peft_prune.cli import main
from peft_prune.models.generation import greedy_answers
from tests.editors.test_decoders import loud
from tests.families import tiny_family
from tests.talking import spaced_tokenizer

WORDS = {"vocab_size": 50}
TUNED = ["--editor", "ft", "--set", "lr=0.5", "--set", "norm_constraint=9.0", "--json"]


def prepared(model: PreTrainedModel, folder: Path) -> list[str]:
    """Options for a model and requests in ``folder``."""
    loud(model).save_pretrained(folder / "model")
    spaced_tokenizer().save_pretrained(folder / "model")
    request = {"prompt": "note sea {}", "subject": "sane ant", "target_new": "ten", "target_true": "net"}
    (folder / "requests.json").write_text(json.dumps([request]))
    return ["--model", str(folder / "model"), "--requests", str(folder / "requests.json")]


def adapted(out: Path) -> list[int]:
    return json.loads((out / "adapter_config.json").read_text())["layers_to_transform"]


def test_the_ordinary_layers_of_a_model_with_experts_are_edited(capsys, tmp_path: Path) -> None:
    options = prepared(tiny_family("jamba", **WORDS), tmp_path)
    command = ["edit", *options, *TUNED]
    assert main([*command, "--layers", "0", "--out", str(tmp_path / "one")]) == 0
    assert adapted(tmp_path / "one") == [0]
    assert main([*command, "--layers", "1", "--out", str(tmp_path / "other")]) == 2
    errors = capsys.readouterr().err
    assert (
        "layer: 1 (model.layers.1) cannot be edited: a mixture of experts" in errors and "rome edit experts" in errors
    )
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("name", "place"), [("gemma3", "language_model.layers"), ("falcon_h1", "feed_forward")])
def test_the_text_decoder_and_the_mlp_are_what_an_edit_reaches(name: str, place: str, capsys, tmp_path: Path) -> None:
    words = {"text_config": WORDS} if name == "gemma3" else WORDS
    options = prepared(tiny_family(name, **words), tmp_path)
    assert main(["edit", *options, *TUNED, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    entries = load_file(tmp_path / "out" / "adapter_model.safetensors")
    factors = [key for key in entries if key.endswith(".weight")]
    assert factors and all(place in key and key.split(".down_proj.")[1:] for key in factors)


def test_tracing_suggests_layers_that_can_be_edited(capsys, tmp_path: Path) -> None:
    model = loud(tiny_family("lfm2_moe", **WORDS))
    options = prepared(model, tmp_path)
    (answer,) = greedy_answers(model, spaced_tokenizer(), ["note sea sane ant"], max_new_tokens=1)
    fact = {"prompt": "note sea {}", "subject": "sane ant", "target_new": "ten", "target_true": answer.strip()}
    (tmp_path / "requests.json").write_text(json.dumps([fact]))
    assert main(["locate", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["editable"] == [0] and found["layer"] == 0 and found["mlp"][1] is None
    assert main(["locate", *options]) == 0
    assert "–" in capsys.readouterr().out
