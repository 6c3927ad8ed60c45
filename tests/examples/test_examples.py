"""Every recipe in examples/ runs as its users run it, in small settings."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from peft_prune import PruneEditConfig, load_requests
from peft_prune.builtin import builtin_model_path, edit_requests, held_out_texts, known_facts
from peft_prune.cli import main
from peft_prune.cli.app import app
from tests.processes.launching import launched
from tests.tiny import random_update, tiny_llama

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL_CHOICE = ("--edits", 3, "--every", 20, "--layers", 0, "--texts", 100)
SMALL_COMPARISON = ("--editors", "rome,mend", "--limit", 2, "--every", 10, "--mend-steps", 2)
SMALL_TRAINING = (
    *("--share", 0.0005, "--items", 3, "--texts", 300, "--batch", 2, "--length", 16, "--vocabulary", 300),
    *("--width", 16, "--inner", 32, "--layers", 1, "--threads", 1),
)


@pytest.fixture(autouse=True)
def own_process_settings() -> Iterator[None]:
    """What a script sets for its whole process is as before for the tests that follow."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """The file as a script, with these words on its command line."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def rows_of(table: Path) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.read_text().splitlines()]


def test_choose_strength(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("choose_strength.py", monkeypatch, *SMALL_CHOICE, "--out", tmp_path / "strength")
    head, _, *rows = rows_of(tmp_path / "strength" / "table.md")
    assert head[1:5] == ["efficacy", "greedy", "generalization", "locality"]
    assert [row[0].split(":")[0] for row in rows[:3]] == ["no restraint", "configured", "recommended (all)"]
    assert all(0 <= float(cell) <= 1 for row in rows for cell in row[1:6])
    # the restraint lowers the condition number
    assert float(rows[1][-1]) <= float(rows[0][-1])
    assert (tmp_path / "strength" / "front-all.png").stat().st_size > 1000


def test_compare_editors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "requests": edit_requests(6),
        "facts": [{"prompt": fact["prompt"], "object": fact["object"]} for fact in known_facts()[:60]],
        "text": held_out_texts()[:6],
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    given = [word for name in files for word in (f"--{name}", tmp_path / f"{name}.json")]
    out = tmp_path / "results"
    run("compare_editors.py", monkeypatch, "--model", builtin_model_path(), *given, *SMALL_COMPARISON, "--out", out)
    _, _, before, *rows = rows_of(out / "table.md")
    assert before[0] == "none"
    assert [row[0] for row in rows[::2]] == ["MEND", "MEND", "ROME"]
    assert [row[3] for row in rows] == ["no", "yes"] * 3
    assert rows[-2][2] == "2/2", "both ROME edits take"
    # what is there is not made again
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    run("compare_editors.py", monkeypatch, "--model", "nowhere", *given, *SMALL_COMPARISON, "--out", out)
    assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("*.json")}


def test_train_builtin_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("train_builtin_model.py", monkeypatch, *SMALL_TRAINING, "--out", tmp_path / "model")
    quality = json.loads((tmp_path / "model" / "quality.json").read_text())
    assert quality["training"]["steps"] == 7, "one of each stage"
    assert quality["facts"]["n"] == 3
    assert quality["held_out_perplexity"] > 1


def test_serve_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tiny model can do of it; a real one and llama.cpp itself are in tests/export/test_real_servers.py."""
    pytest.importorskip("gguf")
    page = (EXAMPLES / "serve_llama_cpp.md").read_text()
    edit, export = (words.split() for words in re.findall(r"^\$ peft-prune (.*)$", page, re.M))
    options = {name for one in typer.main.get_command(app).commands["edit"].params for name in one.opts}
    assert {word for word in edit if word.startswith("--")} <= options
    monkeypatch.chdir(tmp_path)
    (requests,) = re.findall(r"^```json\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "requests.json").write_text(requests)
    assert len(load_requests("requests.json")) == 2
    tiny_llama().save_pretrained("MODEL")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("MODEL"), PruneEditConfig(layers_to_transform=[1]))
    ((name, layer),) = model.edited_layers()
    model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    model.save_pretrained("ADAPTER")
    assert main(export) == 0
    assert (tmp_path / "GGUF" / "adapter.gguf").is_file() and "GGUF/adapter.gguf" in page


def test_edit_and_push(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from tests.hub.scene import loopback

    with loopback(tmp_path) as hub:
        code = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
        done = hub.run(code, EXAMPLES / "edit_and_push.py", "someone/example")
        assert done.returncode == 0, done.stderr
        files = hub.files("someone/example")
    assert "published: " in done.stdout and "lora/adapter_model.safetensors" in files
    assert "What was measured" in files["README.md"].decode()


def test_every_example_has_a_test() -> None:
    own = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    own |= {"own_fact"}  # the notebook, in test_notebook.py
    kinds = (".py", ".md", ".ipynb")
    assert {path.stem for path in EXAMPLES.iterdir() if path.suffix in kinds} - own == set()


def test_quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bitsandbytes")
    run("quantized.py", monkeypatch, "--edits", 2, "--out", tmp_path / "edits")
    printed = capsys.readouterr().out
    held = re.findall(r"^(\w+): (\d) edits hold before, (\d) after", printed, re.M)
    assert [into for into, *_ in held] == ["dequantized", "requantized"]
    # merging into dequantized weights keeps what holds
    assert held[0][1] == held[0][2] == "2"
    assert (tmp_path / "edits" / "adapter_model.safetensors").is_file()


def test_accelerate_multi_gpu(tmp_path: Path) -> None:
    out, history = tmp_path / "edits", tmp_path / "edits.db"
    script, options = (
        EXAMPLES / "accelerate_multi_gpu.py",
        ["--edits", "2", "--cpu", "--out", out, "--history", history],
    )
    done = launched(script, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.fullmatch(r"2 of 2 edits took, in 2 processes\nefficacy 0.0 to 1.0\n", done.stdout)
    assert (out / "adapter_model.safetensors").is_file() and history.is_file()
