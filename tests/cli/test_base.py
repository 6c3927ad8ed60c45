"""A base that is not the base, or not alone: one line and exit code 2, from every command that loads one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.cli.test_commands import record, run
from tests.session.scene import MODULE, REQUESTS, adapted, session
from tests.talking import spaced_tokenizer
from tests.tiny import random_update, willing


@dataclass(frozen=True)
class Work:
    """Where a base, an adapter of it, a history and what the commands need lie."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def requests(self) -> Path:
        return self.folder / "requests.json"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    found = Work(tmp_path_factory.mktemp("work"))
    willing("gpt2").save_pretrained(found.base)
    spaced_tokenizer().save_pretrained(found.base)
    model = adapted(task_type="CAUSAL_LM")
    ((name, layer),) = model.edited_layers()
    model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    model.peft_config["default"].base_model_name_or_path = str(found.base)
    model.save_pretrained(found.adapter)
    found.requests.write_text(json.dumps([record("sane ant")]))
    (found.folder / "facts.json").write_text(json.dumps([{"prompt": "note stone eat", "object": "sea"}]))
    with session(found.folder / "edits.db") as editing:
        editing.edit(REQUESTS[:1])
    return found


def edited_base(work: Work, target: Path) -> Path:
    """The base with one element of an MLP changed by a twentieth of σmax."""
    model = AutoModelForCausalLM.from_pretrained(work.base)
    weight = model.get_submodule(MODULE).weight
    with torch.no_grad():
        weight[7, 3] += 0.05 * torch.linalg.matrix_norm(weight, 2)
    model.save_pretrained(target)
    spaced_tokenizer().save_pretrained(target)
    return target


def commands(work: Work, model: Path, out: Path) -> dict[str, tuple[object, ...]]:
    return {
        "evaluate": ("evaluate", "--model", model, "--adapter", work.adapter, "--requests", work.requests),
        "restrain": ("restrain", work.adapter, "--model", model, "--out", out),
        "merge": ("merge", work.adapter, "--model", model, "--out", out),
        "report": ("report", work.adapter, "--model", model, "--out", out),
    }


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code, output, errors = run(capsys, *arguments)
    assert code == 2 and output == "" and errors.count("\n") == 1
    return errors


def test_an_adapter_is_refused_on_an_edited_base_and_on_its_own_merged_checkpoint(capsys, work, tmp_path) -> None:
    code, _, errors = run(capsys, "merge", work.adapter, "--model", work.base, "--out", tmp_path / "merged")
    assert code == 0, errors
    for model in (tmp_path / "merged", edited_base(work, tmp_path / "edited")):
        for command in commands(work, model, tmp_path / "out").values():
            errors = refused(capsys, *command)
            assert "The adapter was made for base (weights" in errors and f"the base is {model.name} (" in errors
            assert not (tmp_path / "out").exists()


def test_evaluate_can_be_told_to_go_on(capsys, work, tmp_path) -> None:
    evaluate = commands(work, edited_base(work, tmp_path / "edited"), tmp_path / "out")["evaluate"]
    with pytest.warns(UserWarning, match="The adapter was made for base"):
        code, _, errors = run(capsys, *evaluate, "--no-strict-base", "--json")
    assert code == 0, errors


def test_a_history_is_refused_on_an_edited_base(capsys, work, tmp_path) -> None:
    model = edited_base(work, tmp_path / "edited")
    more = {
        "undo": (1,),
        "tune": ("--facts", work.folder / "facts.json"),
        "report": (),
        "resume": ("--requests", work.requests, "--stats", work.requests),
    }
    for command, own in more.items():
        arguments = (command, work.folder / "edits.db", *own, "--model", model, "--out", tmp_path / "out")
        errors = refused(capsys, *arguments)
        assert "belongs to GPT2LMHeadModel (weights" in errors and "the model is edited (weights" in errors
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["PRUNE_EDIT", "LORA"])
def test_a_base_with_an_adapter_beside_its_weights_is_refused_by_name(capsys, work, tmp_path, method) -> None:
    model, source = tmp_path / "both", work.adapter
    shutil.copytree(work.base, model)
    if method == "LORA":
        source = tmp_path / "lora"
        get_peft_model(willing("gpt2"), LoraConfig(target_modules=["c_fc"], fan_in_fan_out=True)).save_pretrained(
            source
        )
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(source / file, model)
    arguments = commands(work, model, tmp_path / "out") | {
        "edit": ("edit", "--model", model, "--requests", work.requests, "--out", tmp_path / "out"),
        "audit": ("audit", "--base", work.base, "--edited", model, "--out", tmp_path / "out"),
    }
    for command in arguments.values():
        errors = refused(capsys, *command)
        assert f"{model} holds an adapter beside its weights (adapter_config.json)" in errors
        assert not (tmp_path / "out").exists()


def test_a_merged_checkpoint_has_what_its_processor_needs_and_nothing_else(capsys, work, tmp_path) -> None:
    model = tmp_path / "model"
    shutil.copytree(work.base, model)
    needed = {"preprocessor_config.json": "{}", "processor_config.json": "{}", "chat_template.jinja": "{{ messages }}"}
    needed |= {"tokenizer.model": "pieces", "additional_chat_templates/tool.jinja": "{{ tools }}"}
    stray = ("notes.txt", "optimizer.pt", "training_args.bin", "README.md", "pytorch_model.bin", "trainer_state.json")
    (model / "additional_chat_templates").mkdir()
    for name in (*needed, *stray):
        (model / name).write_text(needed.get(name, "stray"))
    code, _, errors = run(capsys, "merge", work.adapter, "--model", model, "--out", tmp_path / "out")
    assert code == 0, errors
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name: (tmp_path / "out" / name).read_text() for name in needed} == needed
    made = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert found == {*made, *needed}
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
