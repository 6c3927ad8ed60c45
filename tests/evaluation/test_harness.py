"""Tasks of lm-evaluation-harness from local files, before and after an edit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager
from peft import get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.cli import main
from peft_prune.evaluation import harness_figures, harness_model
from peft_prune.models.tokenization import continuation_ids
from tests.talking import dense_target_score, sentences, spaced_tokenizer
from tests.tiny import random_update, willing

MODULE = "transformer.h.1.mlp.c_proj"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: {kind}
test_split: test
doc_to_text: "{{{{question}}}}"
{rest}
"""
CHOICE = """doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
PERPLEXITY = """doc_to_target: "{{question}}"
metric_list:
  - metric: word_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
"""
GENERATE = """doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    questions = dict.fromkeys(sentences(20))
    records = [{"question": q, "choices": ["ten", "net"], "answer": i % 2} for i, q in enumerate(questions)]
    (folder / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, kind, rest in (
        ("choose", "multiple_choice", CHOICE),
        ("say", "generate_until", GENERATE),
        ("roll", "loglikelihood_rolling", PERPLEXITY),
    ):
        text = TASK.format(name=f"local_{name}", file=folder / "items.jsonl", kind=kind, rest=rest)
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def edited() -> Any:
    model = get_peft_model(willing("gpt2"), PruneEditConfig(layers_to_transform=[1], restraint="none")).eval()
    model.add_edits({MODULE: random_update((16, 64), rank=3, scale=4.0)})
    return model


def dense_accuracy(model: Any, folder: Path) -> list[float]:
    """Whether the right choice is the more probable one, item by item in float64; choices have as many tokens."""
    found = []
    for line in (folder / "items.jsonl").read_text().splitlines():
        item = json.loads(line)
        scores = []
        for choice in item["choices"]:
            (pair,) = continuation_ids(spaced_tokenizer(), [item["question"]], [choice])
            scores.append(dense_target_score(model, pair.prompt, pair.target) * len(pair.target))
        found.append(float(scores.index(max(scores)) == item["answer"]))
    return found


def test_figures_before_and_after_equal_a_dense_computation(edited: Any, folder: Path) -> None:
    found = harness_figures(edited, spaced_tokenizer(), ["local_choose"], include_path=folder)
    with edited.disable_adapter():
        before = dense_accuracy(edited, folder)
    after = dense_accuracy(edited, folder)
    assert before != after
    for moment, expected in (("before", before), ("after", after)):
        figure = found[moment]["local_choose"]["acc"]
        assert figure["value"] == pytest.approx(sum(expected) / len(expected))
        assert (figure["n"], figure["higher_is_better"]) == (len(expected), True)
        assert figure["stderr"] == pytest.approx(torch.tensor(expected).std().item() / len(expected) ** 0.5, rel=1e-4)
    gap = found["difference"]["local_choose"]["acc"]
    assert gap["value"] == pytest.approx((sum(after) - sum(before)) / len(before))
    assert gap["low"] <= gap["value"] <= gap["high"]


def test_the_model_and_the_tokenizer_are_left_as_they_were(edited: Any, folder: Path) -> None:
    tokenizer = spaced_tokenizer()
    edited.train()
    state = {name: tensor.clone() for name, tensor in edited.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in edited.named_parameters()}
    harness_figures(edited, tokenizer, ["local_choose", "local_say"], include_path=folder, limit=4)
    assert tokenizer.pad_token is None and edited.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in edited.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in edited.named_parameters()} == flags


def test_an_edited_model_goes_into_the_harness_itself(edited: Any, folder: Path) -> None:
    lm = harness_model(edited, spaced_tokenizer(), batch_size=3)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(lm, tasks=["local_say"], task_manager=manager, bootstrap_iters=0)
    assert results["n-samples"]["local_say"]["effective"] > 10
    assert all(isinstance(sample["resps"][0][0], str) for sample in results["samples"]["local_say"])


def test_a_perplexity_has_no_difference_of_items(edited: Any, folder: Path) -> None:
    found = harness_figures(edited, spaced_tokenizer(), ["local_roll"], include_path=folder)
    before, after = (found[moment]["local_roll"]["word_perplexity"]["value"] for moment in ("before", "after"))
    assert before != after and found["difference"]["local_roll"] == {}


def test_nothing_reaches_standard_output_or_the_random_states(
    edited: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    harness_figures(edited, spaced_tokenizer(), ["local_choose"], include_path=folder, limit=3)
    assert capsys.readouterr().out == ""
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_plain_model_counts_as_a_base(folder: Path) -> None:
    found = harness_figures(willing("gpt2"), spaced_tokenizer(), ["local_choose"], include_path=folder, limit=5)
    assert found["before"] == found["after"] and found["before"]["local_choose"]["acc"]["n"] == 5
    assert found["difference"]["local_choose"]["acc"]["value"] == 0


def test_what_cannot_be_run_is_named(edited: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tasks: 'local_sing' is not among the harness's \d+ tasks nor in"):
        harness_figures(edited, spaced_tokenizer(), ["local_sing"], include_path=folder)
    with pytest.raises(ValueError, match="tasks: is empty"):
        harness_figures(edited, spaced_tokenizer(), [])
    with pytest.raises(ValueError, match=r"include_path: .* is no folder"):
        harness_figures(edited, spaced_tokenizer(), ["local_say"], include_path=tmp_path / "none")
    for option, value in (("limit", 0), ("num_fewshot", -1), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"{option}: {value} must be at least"):
            harness_figures(edited, spaced_tokenizer(), ["local_say"], include_path=folder, **{option: value})
    edited.merge_adapter()
    with pytest.raises(ValueError, match=r"call unmerge_adapter\(\) first"):
        harness_figures(edited, spaced_tokenizer(), ["local_say"], include_path=folder)


def test_the_command_prints_both_moments(
    edited: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    willing("gpt2").save_pretrained(tmp_path / "model")
    spaced_tokenizer().save_pretrained(tmp_path / "model")
    edited.save_pretrained(tmp_path / "adapter")
    arguments = ["harness", "--model", tmp_path / "model", "--adapter", tmp_path / "adapter"]
    arguments += ["--tasks", "local_choose,local_say", "--include-path", folder]
    assert main([str(a) for a in [*arguments, "--json"]]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = harness_figures(edited, spaced_tokenizer(), ["local_choose", "local_say"], include_path=folder)
    assert found == expected
    assert main([str(argument) for argument in arguments]) == 0
    assert "local_choose: acc ↑" in capsys.readouterr().out
