"""`peft-prune export`, end to end: what it writes and prints, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.cli.test_commands import SUBJECTS, adapter, edit, folder, run
from tests.export import loaders
from tests.talking import dense_greedy, spaced_tokenizer

__all__ = ["adapter", "folder"]


def test_a_lora_is_written_and_every_server_told(capsys, folder: Path, adapter: Path, tmp_path: Path) -> None:
    code, output, errors = run(capsys, "export", adapter, "--out", tmp_path / "x", "--json")
    assert code == 0, errors
    told = json.loads(output)
    assert set(told) == {*("folder", "format", "rank", "modules", "restraint_applied", "truncated", "servers", "lost")}
    assert told["modules"] == ["transformer.h.1.mlp.c_proj"] and told["lost"] is None
    assert told["rank"] == loaders.config_of(tmp_path / "x")["r"] >= 3
    code, output, _ = run(capsys, "export", adapter, "--out", tmp_path / "y", "--base", folder / "model")
    assert code == 0 and "vLLM: --max-lora-rank 8" in output and "TGI: leaves out mlp.c_proj" in output


def test_the_edits_that_a_truncation_loses_are_those_that_no_longer_fire(capsys, folder, tmp_path) -> None:
    history = tmp_path / "edits.db"
    edit(capsys, folder, tmp_path / "adapter", "--restraint", "none", "--history", history)
    told = {}
    for name, given in (("requests", folder / "requests.json"), ("history", history)):
        code, output, errors = run(
            capsys, "export", tmp_path / "adapter", "--base", folder / "model", "--max-rank", 1, f"--{name}", given,
            "--out", tmp_path / name, "--json",
        )  # fmt: skip
        assert code == 0, errors
        told[name] = json.loads(output)
    assert told["requests"]["truncated"]["transformer.h.1.mlp.c_proj"] > 0
    lost = {one["prompt"].removeprefix("note sea ") for one in told["requests"]["lost"]}
    tokenizer = spaced_tokenizer()

    def firing(place: Path) -> set[str]:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "model"), place).eval()
        ids = {subject: tokenizer(f"note sea {subject}")["input_ids"] for subject in SUBJECTS}
        said = {subject: tokenizer.decode(dense_greedy(model, own, 4)) for subject, own in ids.items()}
        return {subject for subject, answer in said.items() if answer.split()[:1] == ["ten"]}

    assert lost == firing(tmp_path / "adapter") - firing(tmp_path / "requests")
    assert lost, "one direction cannot hold four edits"
    assert {one["prompt"] for one in told["history"]["lost"]} == {one["prompt"] for one in told["requests"]["lost"]}


@pytest.mark.parametrize(
    "words, said",
    [
        (("--format", "onnx"), "format: 'onnx' is not one of lora, gguf, mlx"),
        (("--rank", 1), "rank: 1 is below"),
        (("--max-rank", 1), "max_rank: to measure which edits it loses, give --base"),
        (("--requests", "requests.json"), "requests: acts together with --max-rank alone"),
        (("--format", "mlx"), "needs the base"),
        (("--fill-layers",), "fill_layers: needs the base"),
        (("--server", "triton"), "servers: 'triton' is none"),
        (("--server", "TGI"), "TGI would leave out"),
        (("--base", "nowhere/at/all"), "does not exist"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(capsys, adapter, words, said, tmp_path) -> None:
    code, output, errors = run(capsys, "export", adapter, "--out", tmp_path / "x", *words)
    assert code == 2 and said in errors and len(errors.strip().splitlines()) == 1 and not output
    assert not (tmp_path / "x").exists()


def test_an_adapter_of_another_base_is_refused(capsys, folder, adapter, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    model.transformer.h[1].mlp.c_proj.weight.data.mul_(1.5)
    model.save_pretrained(tmp_path / "other")
    code, _, errors = run(capsys, "export", adapter, "--base", tmp_path / "other", "--out", tmp_path / "x")
    assert code == 2 and "was made for" in errors and not (tmp_path / "x").exists()


def test_the_adapters_own_folder_is_never_written_over(capsys, adapter) -> None:
    code, _, errors = run(capsys, "export", adapter, "--out", adapter, "--overwrite")
    assert code == 2 and "is the adapter as well" in errors
    assert loaders.config_of(adapter)["peft_type"] == "PRUNE_EDIT"
