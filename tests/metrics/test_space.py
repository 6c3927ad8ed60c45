"""Spaces: folders written from what a module says of itself, which `evaluate` loads and the Hub shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import pytest
import yaml

from peft_prune.evaluation import kind_of
from peft_prune.metrics import METRICS, metric_path, write_space
from peft_prune.metrics.__main__ import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", METRICS)
def test_a_written_folder_is_a_space(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_space(name, tmp_path)
    assert folder == tmp_path / name
    assert {file.name for file in folder.iterdir()} == {f"{name}.py", "app.py", "README.md", "requirements.txt"}
    launched: list[Any] = []
    monkeypatch.setattr("evaluate.utils.launch_gradio_widget", launched.append)
    exec(compile((folder / "app.py").read_text(), str(folder / "app.py"), "exec"), {"__file__": str(folder / "app.py")})
    assert launched[0].name == name
    head = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (head["sdk"], head["app_file"], head["tags"]) == ("gradio", "app.py", ["evaluate", "metric"])
    assert head["title"] and head["description"].endswith(".")
    assert (folder / "requirements.txt").read_text().split() == ["peft-prune[evaluation]"]


@pytest.mark.parametrize("name", METRICS)
def test_the_example_of_a_readme_runs(name: str, tmp_path: Path) -> None:
    code = (write_space(name, tmp_path) / "README.md").read_text().split("```python\n")[1].split("```")[0]
    *lines, last = code.strip().splitlines()
    found: dict[str, Any] = {}
    exec("\n".join([*lines, f"result = {last}"]), found)
    assert isinstance(found["result"], float)


@pytest.mark.parametrize("name", METRICS)
def test_a_written_folder_computes_what_the_package_computes(name: str, tmp_path: Path) -> None:
    own, written = (evaluate.load(path) for path in (metric_path(name), str(write_space(name, tmp_path))))
    example = {argument: list(values) for argument, values in own.example.items()}
    found = own.compute(**example)
    assert found == written.compute(**example)
    assert own.figure in found and f"{own.figure}_n" in found


@pytest.mark.parametrize("name", METRICS)
def test_a_module_says_which_direction_is_better(name: str) -> None:
    module = evaluate.load(metric_path(name))
    better = "Higher" if kind_of(module.figure).higher_is_better else "Lower"
    assert better == ("Lower" if name == "perplexity" else "Higher")
    assert module.description.endswith(f" {better} is better.")


def test_the_command_writes_several_spaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["efficacy", "recall", "--out", str(tmp_path / "spaces")])
    written = [tmp_path / "spaces" / name for name in ("efficacy", "recall")]
    assert capsys.readouterr().out.split() == [str(folder) for folder in written]
    assert all((folder / "app.py").is_file() for folder in written)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    write_space("recall", tmp_path)
    (tmp_path / "recall" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="recall exists"):
        write_space("recall", tmp_path)
    assert (tmp_path / "recall" / "mine.txt").read_text() == "mine"
    write_space("recall", tmp_path, overwrite=True)
    assert not (tmp_path / "recall" / "mine.txt").exists()


def test_an_unknown_module_ends_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metric: 'speed' is not one of edit_score, efficacy"):
        write_space("speed", tmp_path)
    command = [sys.executable, "-m", "peft_prune.metrics", "efficacy", "speed", "--out", str(tmp_path / "spaces")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, "Traceback" in run.stderr) == (2, False)
    assert "'speed'" in run.stderr.splitlines()[-1]
    assert not (tmp_path / "spaces").exists()
