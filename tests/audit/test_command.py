"""`peft-prune audit`, end to end, and its memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from peft_prune.audit import audit
from peft_prune.cli import main

from .scene import LLAMA, base, edited, low_rank

OTHER = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    before = base("llama", folder / "base")
    for step, scale in enumerate((1.0, 4.0)):
        changes = dict.fromkeys((LLAMA, OTHER), low_rank((16, 32), 2, scale))
        edited(before, folder / f"step{step}", changes)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["audit", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_json_document_is_the_audit(capsys, scene: Path, tmp_path: Path) -> None:
    report, adapter = tmp_path / "audit.html", tmp_path / "adapter"
    code, output, errors = run(
        capsys, "--base", scene / "base", "--edited", scene / "step0", scene / "step1", "--out", report,
        "--extract", adapter, "--rank", 1, "--json",
    )  # fmt: skip
    assert code == 0, errors
    found = json.loads(output)
    expected = audit(scene / "base", [scene / "step0", scene / "step1"]).to_json()
    assert found["base"] == expected["base"] and len(found["checkpoints"]) == 2
    for own, other in zip(found["checkpoints"], expected["checkpoints"], strict=True):
        assert own["matrices"][LLAMA]["growth"] == pytest.approx(other["matrices"][LLAMA]["growth"])
        assert own["path"] == other["path"] and own["unchanged"] == other["unchanged"]
    assert found["extraction"]["ranks"] == {name.removesuffix(".weight"): 1 for name in (LLAMA, OTHER)}
    assert found["report"] == str(report) and (adapter / "adapter_model.safetensors").is_file()
    html = report.read_text()
    for text in (
        "Audit of an edited model",
        "step0",
        LLAMA,
        "Growth of the condition number over the series",
        str(adapter),
    ):
        assert text in html


def test_the_table_and_the_limit(capsys, scene: Path, tmp_path: Path) -> None:
    arguments = ("--base", scene / "base", "--edited", scene / "step1", "--out", tmp_path / "audit.html")
    code, output, errors = run(capsys, *arguments, "--max-growth", 1.0001)
    assert code == 0, errors
    assert "2 matrices differ" in output
    assert "A limit has been passed" in (tmp_path / "audit.html").read_text()


def test_an_unchanged_checkpoint_is_said_to_be_one(capsys, scene: Path, tmp_path: Path) -> None:
    arguments = ("--base", scene / "base", "--edited", scene / "base", "--out", tmp_path / "audit.html")
    assert run(capsys, *arguments)[0] == 0
    assert "Nothing has changed" in (tmp_path / "audit.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--edited", "nowhere/at/all"), "checkpoint: 'nowhere/at/all' does not exist"),
        (("--edited", "owner/name"), "owner/name is no folder here and cannot be fetched"),
        (("--edited", "{step0}", "--rank", 3), "--rank and --energy need --extract DIR"),
        (("--edited", "{step0}", "--max-growth", 0.5), "max_growth: 0.5 must be above 1"),
        (("--edited", "{step0}", "--only", "nothing"), "only: 'nothing' matches none of"),
        ((), "Missing option '--edited'"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(capsys, scene: Path, tmp_path: Path, options, message: str) -> None:
    options = [str(option).format(step0=scene / "step0") for option in options]
    code, output, errors = run(capsys, "--base", scene / "base", *options, "--out", tmp_path / "audit.html")
    assert code == 2 and output == "" and message in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_shows_before_anything_is_compared(capsys, scene: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("peft_prune.audit.audit", lambda *_, **__: pytest.fail("the audit has begun"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for options, message in (
        (("--extract", tmp_path / "a", "--rank", 0), "rank: 0 must be at least 1"),
        (("--extract", tmp_path / "a", "--energy", 2), "energy: 2.0 must be above 0"),
        (("--extract", tmp_path / "full"), "full exists; give another folder, or --overwrite"),
        (("--extract", scene / "step1", "--overwrite"), "is the checkpoint as well"),
        (("--max-growth", 1), "max_growth: 1.0 must be above 1"),
        (("--out", tmp_path / "full"), "full is a folder; give the name of a file"),
        (("--out", tmp_path / "full" / "file" / "audit.html"), "file is a file"),
    ):
        arguments = ("--base", scene / "base", "--edited", scene / "step0", "--edited", scene / "step1")
        out = () if "--out" in options else ("--out", tmp_path / "audit.html")
        code, _, errors = run(capsys, *arguments, *options, *out)
        assert code == 2 and message in errors and errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_report_stays_where_nothing_can_be_extracted(capsys, scene: Path, tmp_path: Path) -> None:
    arguments = ("--base", scene / "base", "--edited", scene / "base", "--out", tmp_path / "audit.html")
    code, _, errors = run(capsys, *arguments, "--extract", tmp_path / "adapter")
    assert code == 2 and "nothing that an adapter can hold differs" in errors and "no tensor differs" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["audit.html"]


def test_names_with_brackets_are_shown_as_they_are(capsys, scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "E[v2][/b]"
    shutil.copytree(scene / "step0", folder)
    code, output, errors = run(
        capsys, "--base", scene / "base", "--edited", folder, "--out", tmp_path / "a[final].html"
    )
    assert code == 0, errors
    shown = "".join(output.split())
    assert "E[v2][/b]" in shown and "a[final].html" in shown


MEASURE = """
import sys
from peft_prune.audit import audit

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

before = resident("VmRSS")
found = audit(sys.argv[1], [sys.argv[2]])
print(len(found.changed), resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    """Two checkpoints of 320 MB each, one matrix changed: the peak stays far below one of them."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "edited"):
        (tmp_path / name).mkdir()
        places = {}
        for shard in range(4):
            file = f"model-{shard}.safetensors"
            weights = {f"layers.{shard}.{i}.weight": torch.full((1024, 4096), 0.1 * i + 1.0) for i in range(5)}
            if shard == 2:
                weights["layers.2.3.weight"] = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(1))
                if name == "edited":
                    change = torch.randn(1024, 1, generator=generator) @ torch.randn(1, 4096, generator=generator)
                    weights["layers.2.3.weight"] += 0.1 * change
            save_file(weights, tmp_path / name / file)
            places |= dict.fromkeys(weights, file)
        index = {"weight_map": places}
        (tmp_path / name / "model.safetensors.index.json").write_text(json.dumps(index))
    size = sum(path.stat().st_size for path in (tmp_path / "base").iterdir()) / 2**20
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path / "base"), str(tmp_path / "edited")]
    changed, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert changed == "1" and size > 300
    assert float(peak) < 0.75 * size, f"{peak} MiB over a checkpoint of {size:.0f} MiB"


def test_the_built_in_model_is_known_by_its_name(capsys, tmp_path: Path) -> None:
    code, output, errors = run(
        capsys, "--base", "builtin", "--edited", "builtin", "--out", tmp_path / "a.html", "--json"
    )
    assert code == 0, errors
    (found,) = json.loads(output)["checkpoints"]
    assert not found["matrices"] and found["unchanged"] > 10 and found["given"] == "builtin"


def test_a_checkpoint_is_never_written_over(capsys, scene: Path, tmp_path: Path) -> None:
    shutil.copytree(scene / "step0", tmp_path / "edited")
    weights = next((tmp_path / "edited").glob("*.safetensors"))
    before = weights.read_bytes()
    code, _, errors = run(capsys, "--base", scene / "base", "--edited", tmp_path / "edited", "--out", weights)
    assert code == 2 and f"out: {weights} exists and is no HTML file" in errors
    code, _, errors = run(
        capsys, "--base", scene / "base", "--edited", scene / "step0", "--out", tmp_path / "a.html",
        "--extract", tmp_path / "edited",
    )  # fmt: skip
    assert code == 2 and f"extract: {tmp_path / 'edited'} exists; give another folder" in errors
    assert weights.read_bytes() == before
