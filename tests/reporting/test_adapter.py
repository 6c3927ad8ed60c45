"""The report of an adapter's folder, with and without its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from peft_prune.cli import main
from peft_prune.errors import AdapterError
from peft_prune.reporting import adapter_report, render
from peft_prune.reporting.adapter_page import read_adapter
from peft_prune.reporting.document import Cell
from tests.session.scene import MODULE, REQUESTS, adapted, session
from tests.talking import spaced_tokenizer
from tests.tiny import willing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    willing("gpt2").save_pretrained(folder / "model")
    spaced_tokenizer().save_pretrained(folder / "model")
    with session(model=adapted(restraint="clip", restrain_on="merge")) as run:
        run.edit(REQUESTS[:3])
        run.save(folder / "adapter")
    requests = [{"prompt": r.prompt, "subject": r.subject, "target_new": r.target_new} for r in REQUESTS[:3]]
    (folder / "requests.json").write_text(json.dumps(requests))
    facts = [{"prompt": "note tea", "object": "ten"}, {"prompt": "sea nest", "object": "oats"}]
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder


def test_without_a_base_it_says_what_is_in_the_file(folder: Path) -> None:
    report = adapter_report(folder / "adapter")
    assert report.summary[0] == "The adapter holds 3 edits in 1 layer."
    assert report.summary[1] == "It has been restrained (clip)." and report.level == "open"
    (rows,) = [block.rows for block in report.sections[0].blocks if block.key == "factors"]
    _, updates = read_adapter(folder / "adapter")
    norm = float(torch.linalg.matrix_norm(updates[MODULE].dense().double(), 2))
    assert isinstance(rows[0][2], Cell) and rows[0][2].sort == pytest.approx(norm)
    assert "Give --model" in report.advice[0]


def test_the_command_asks_the_model_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    arguments = ["report", folder / "adapter", "--out", out, "--model", folder / "model", "--max-growth", 50, "--json"]
    arguments += ["--requests", folder / "requests.json", "--facts", folder / "facts.json"]
    assert main([str(argument) for argument in arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"report", "level", "verdict", "summary", "advice", "tiles", "redacted"}
    assert found["level"] in ("good", "near", "passed") and found["tiles"]["hold now"]["value"].endswith(" of 3")
    assert main([str(argument) for argument in [*arguments, "--limit", 2]]) == 0
    assert json.loads(capsys.readouterr().out)["tiles"]["hold now"]["value"].endswith(" of 2")
    assert main([str(argument) for argument in arguments]) == 0
    capsys.readouterr()
    html = out.read_text()
    for text in ("sane ant", "does not hold", "recall", "κ(W₀+ΔW)", MODULE):
        assert text in html
    assert main([str(argument) for argument in [*arguments, "--redact"]]) == 0
    assert json.loads(capsys.readouterr().out)["redacted"] is True
    assert "sane ant" not in out.read_text()


def test_it_is_not_good_while_a_request_does_not_hold(folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["report", folder / "adapter", "--out", tmp_path / "report.html", "--model", folder / "model", "--json"]

    def said(*more: object) -> dict:
        assert main([str(argument) for argument in [*arguments, *more]]) == 0
        return json.loads(capsys.readouterr().out)

    limit, asked = ("--max-growth", 1e6), ("--requests", folder / "requests.json")
    assert said(*limit)["level"] == "good" and said()["level"] == "open"
    found = said(*limit, *asked)
    (said_so,) = [sentence for sentence in found["advice"] if "not hold; the table says which" in sentence]
    fallen = int(said_so.split()[0])
    assert fallen > 0, "the scene must lose one"
    assert found["level"] == ("passed" if fallen > 1 else "near")
    verb = "does" if fallen == 1 else "do"
    assert found["verdict"] == f"{fallen} of 3 requests {verb} not hold. Within the limits"
    assert found["tiles"]["growth of κ"]["level"] is None  # green would say too much
    found = said(*asked)
    assert found["level"] in ("near", "passed") and found["verdict"] == f"{fallen} of 3 requests {verb} not hold"


def test_what_is_no_adapter_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="cannot be read"):
        adapter_report(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(folder / "adapter", broken)
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "LORA"}))
    with pytest.raises(AdapterError, match="is of type LORA, PRUNE_EDIT is accepted"):
        adapter_report(broken)
    (broken / "adapter_config.json").write_text(json.dumps({**config, "alpha": -3}))
    with pytest.raises(AdapterError, match="cannot be read: alpha: -3"):
        adapter_report(broken)
    (broken / "adapter_config.json").write_text("[]")
    with pytest.raises(AdapterError, match="is of type None"):
        adapter_report(broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("{tmp}/nothing",), "nothing does not exist; a history's file or an adapter's folder is accepted"),
        (("{folder}/adapter", "--facts", "{folder}/facts.json"), "facts: needs --model, the unedited base"),
        (("{folder}/adapter", "--max-growth", "0"), "max_growth: 0.0 must be above 1"),
        (("{folder}/facts.json",), "is no history of edits"),
        (("{folder}/adapter", "--ability-items", "0"), "ability_items: 0 must be at least 1"),
        (("{folder}/adapter", "--dtype", "fp8"), "dtype: 'fp8' is not one of float32"),
        (("{folder}/adapter", "--limit", "3"), "limit: 3 needs --requests"),
        (("{folder}/adapter", "--redact-key", "short"), "redact_key: has 5 characters, at least 8 are needed"),
        (
            ("{folder}/adapter", "--model", "{tmp}/none", "--requests", "{folder}/requests.json"),
            "none' does not exist",
        ),
    ],
)
def test_bad_input_gives_one_line_and_no_file(capsys, folder: Path, tmp_path: Path, options, message: str) -> None:
    arguments = [option.format(tmp=tmp_path, folder=folder) for option in options]
    assert main(["report", *arguments, "--out", str(tmp_path / "report.html")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_reports_a_history_while_nothing_is_written(
    history_file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = history_file.read_bytes()
    out = tmp_path / "report.html"
    arguments = ["report", history_file, "--out", out, "--model", folder / "model", "--facts", folder / "facts.json"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "Report in" in capsys.readouterr().out and "asked again now" in out.read_text().lower()
    assert history_file.read_bytes() == before
    assert main(["report", str(history_file), "--out", str(out), "--requests", str(folder / "requests.json")]) == 2
    assert "a history knows its own" in capsys.readouterr().err


def test_a_page_of_an_adapter_is_rendered(folder: Path) -> None:
    assert "An adapter with edits" in render(adapter_report(folder / "adapter"))


def test_a_report_never_writes_over_what_it_is_made_of(
    history_file: Path, folder: Path, tmp_path: Path, capsys
) -> None:
    copy = tmp_path / "edits.db"
    shutil.copy(history_file, copy)
    shutil.copy(history_file, tmp_path / "other.db")
    before = copy.read_bytes()
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    shutil.copytree(folder / "adapter", weights.parent)
    for source, out in ((copy, copy), (copy, tmp_path / "other.db"), (copy, weights), (weights.parent, weights)):
        held = out.read_bytes()
        assert main(["report", str(source), "--out", str(out)]) == 2
        assert f"{out.name} exists and is no HTML file" in capsys.readouterr().err
        assert out.read_bytes() == held
    (tmp_path / "folder").mkdir()
    assert main(["report", str(copy), "--out", str(tmp_path / "folder")]) == 2
    assert "is a folder; give the name of a file" in capsys.readouterr().err
    assert copy.read_bytes() == before == (tmp_path / "other.db").read_bytes()
