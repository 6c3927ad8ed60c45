"""Every command on the built-in model, in a process of its own: what it prints, and that no library speaks up."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from peft_prune.builtin import edit_requests, known_facts, plain_texts
from peft_prune.cli.app import GROUPS, app
from peft_prune.cli.examples import EXAMPLES
from peft_prune.cli.options import EDITORS
from peft_prune.editors import editor_names

ROOT = Path(__file__).resolve().parents[2]
BUILTIN = ("--model", "builtin")
FACTS = ("--requests", "edits.jsonl")
QUESTION = "Beladofax lives in"

COMMANDS = {
    "edit": "edit --config edit.yaml --history edits.db --out adapter --json",
    "edit, quietly": "edit --config edit.yaml --out quiet --limit 1 --quiet",
    "edit, as a table": "edit --config edit.yaml --out spoken --limit 1",
    "history": "history edits.db --json",
    "history, as a table": "history edits.db",
    "inspect": "inspect adapter --json",
    "inspect, as a table": "inspect adapter",
    "doctor": "doctor builtin --json",
    "doctor, as a table": "doctor builtin",
    "editors": "editors --json",
    "editors, one": "editors memit",
    "ask": ["ask", "adapter", QUESTION, "--max-new-tokens", "4", "--json"],
    "ask, as a table": ["ask", "builtin", "edits.db", "adapter", QUESTION, "--max-new-tokens", "4"],
    "ask, chat": ["ask", "builtin", "--chat", QUESTION],
    "resume": "resume edits.db --model builtin --out again --json",
    "consolidate": "consolidate edits.db --model builtin --steps 2 --out consolidated --json",
    "restrain": "restrain adapter --model builtin --restraint clip --out restrained --json",
    "evaluate": "evaluate --model builtin --adapter restrained --requests edits.jsonl --json",
    "evaluate, as a table": "evaluate --model builtin --adapter restrained --requests edits.jsonl --limit 1",
    "harness": "harness --model builtin --adapter adapter --tasks local --include-path tasks --limit 2 --json",
    "merge": "merge adapter --model builtin --dtype float32 --out merged --json",
    "export": "export adapter --out lora --json",
    "report": "report edits.db --out report.html --json",
    "audit": "audit --base builtin --edited merged --out audit.html --json",
    "audit, as a table": "audit --base builtin --edited merged --out audit.html",
    "diff": "diff adapter edits.db --json",
    "diff, as a table": "diff adapter edits.db",
    "compose": "compose adapter quiet --model builtin --out both --json",
    "locate": "locate --model builtin --requests edits.jsonl --limit 2 --json",
    "tune": "tune edits.db --model builtin --facts facts.json --out tuned --json",
    "experiment": (
        "experiment --model builtin --layers 0 --edits 1 --restraints none --ability-items 1 --fact-items 2 "
        "--set v_num_grad_steps=3 --set second_try=false --out results --json"
    ),
    "demo": "demo --edits 1 --items 1 --json",
    "undo": "undo edits.db --since 2 --model builtin --out undone --json",
    "undo, all": "undo edits.db --all --model builtin --out none --quiet",
    "push": "push adapter nobody/nothing",
}
CODES = {"ask, chat": 2, "push": 2}
SPEAKS = re.compile(r"peft-prune: |\S.*: \d+ of \d+")
"""How a line of this package on standard error begins: a complaint, a warning, or how far something is."""
EDIT = """\
model: builtin
requests: edits.jsonl
layers: [0]
stats-text: texts.json
restraint: none
set:
  v_num_grad_steps: 20
  context_lengths: [[3, 2]]
"""
TASK = """\
task: local
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    (folder / "edits.jsonl").write_text("".join(json.dumps(one) + "\n" for one in edit_requests(2)))
    (folder / "texts.json").write_text(json.dumps(plain_texts(120)))
    facts = [{"prompt": fact["prompt"], "object": fact["object"]} for fact in known_facts()[:12]]
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "edit.yaml").write_text(EDIT)
    items = [{"question": fact["prompt"], "choices": [fact["object"], "nothing"], "answer": 0} for fact in facts]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "local.yaml").write_text(TASK.replace("FILE", str(folder / "items.jsonl")))
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, tuple[int, str, str]]:
    """What every command line left behind, all run by one process."""
    given = {name: line.split() if isinstance(line, str) else line for name, line in COMMANDS.items()}
    if importlib.util.find_spec("lm_eval") is None:
        del given["harness"]
    (folder / "commands.json").write_text(json.dumps(given))
    done = process("-m", "tests.cli.all_commands", folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "results.json").read_text())
    return {name: tuple(found[name]) for name in given}


def process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "PYTHONWARNINGS")}
    path = os.pathsep.join([str(ROOT), *filter(None, [own.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**own, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **environment},
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_as_it_should_and_no_library_speaks_up(results, name: str) -> None:
    if name not in results:
        pytest.skip("lm_eval is not installed")
    code, output, errors = results[name]
    assert code == CODES.get(name, 0), errors
    foreign = [line for line in errors.splitlines() if not SPEAKS.match(line)]
    assert not foreign
    if name.endswith("quietly") or name == "undo, all":
        assert output == ""
    elif name.endswith("as a table"):
        assert max(len(line) for line in output.splitlines()) <= 80
    elif code == 0 and "--json" in COMMANDS[name]:
        assert isinstance(json.loads(output), dict)


def test_every_command_is_run_here_and_has_an_example() -> None:
    known = set(typer.main.get_command(app).commands)
    assert {name.partition(",")[0] for name in COMMANDS} == known == set(EXAMPLES)
    assert sum(map(len, GROUPS.values())) == len(known)
    for name, lines in EXAMPLES.items():
        assert all(line.split()[:2] == ["peft-prune", name] for line in lines)


def test_answers_stand_side_by_side(results, folder: Path) -> None:
    told = json.loads(results["ask"][1])
    ((answer),) = told["answers"]
    assert told["model"] == "builtin" and told["adapters"] == ["adapter"] and answer["question"] == QUESTION
    assert isinstance(answer["before"], str) and len(answer["after"]) == 1
    table = results["ask, as a table"][1]
    assert "before" in table and "with edits.db" in table and "with adapter" in table
    assert "no chat template" in results["ask, chat"][2]


def test_what_an_adapter_holds_is_told_from_its_files(results) -> None:
    told = json.loads(results["inspect"][1])
    (layer,) = told["layers"].values()
    assert told["base"] == "builtin" and told["edits"] == layer["rank"] == 2
    assert told["restraint"]["form"] == "none" and len(told["base_fingerprint"]) == 8
    measured = json.loads(results["restrain"][1])["layers"]
    assert layer["spectral_norm"] >= next(iter(measured.values()))["delta_spectral_norm"]
    assert layer["frobenius_norm"] >= layer["spectral_norm"] > 0 and 1 <= layer["stable_rank"] <= 2
    assert layer["condition_number"] is None and "need the base" in results["inspect, as a table"][1]


def test_undo_takes_edits_by_their_number_or_all(results) -> None:
    told = json.loads(results["undo"][1])
    assert told["undone"] == [2] and told["edits"]["standing"] == 1 and told["adapter"] == "undone"


def test_the_editors_are_listed_with_what_can_be_set(results) -> None:
    told = json.loads(results["editors"][1])["editors"]
    assert sorted(told) == editor_names() == list(EDITORS)
    assert told["rome"]["hyperparameters"]["v_lr"]["default"] == 0.5
    for editor in told.values():
        assert editor["url"].startswith("https://")
        assert all(one["meaning"] for one in editor["hyperparameters"].values())
    assert "mom2_update_weight" in results["editors, one"][1] and "kmeng01/memit@" in results["editors, one"][1]


def test_a_model_is_examined_before_its_weights_are_loaded(results) -> None:
    told = json.loads(results["doctor"][1])
    assert told["can_be_edited"] and told["problems"] == [] and told["quantization"] is None
    edited, needed = told["edited"].values(), told["memory"]["needed"]["float32"]
    assert len(edited) == 2 and needed["weights"] == 4 * told["parameters"]
    assert needed["second_moments"] == sum(4 * one["shape"][1] ** 2 for one in edited)
    assert needed["fits"]["memory"] and told["tokenizer"]["chat_template"] is False


def test_completion_knows_commands_and_options() -> None:
    for line, place, found in (("ed", "1", ["edit", "editors"]), ("undo --si", "2", ["--since"])):
        typed = {"_PEFT_PRUNE_COMPLETE": "complete_bash", "COMP_WORDS": f"peft-prune {line}", "COMP_CWORD": place}
        told = process("-m", "peft_prune.cli", **typed)
        assert sorted(told.stdout.split()) == found and told.stderr == ""


def test_no_colour_is_no_colour(folder: Path, results) -> None:
    colours = re.compile(r"\x1b\[[0-9;]*3\d")
    told = process("-m", "peft_prune.cli", "diff", folder / "adapter", folder / "quiet", NO_COLOR="1", FORCE_COLOR="1")
    assert told.returncode == 0 and not colours.search(told.stdout), told.stderr
