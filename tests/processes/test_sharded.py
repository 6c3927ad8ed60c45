"""A base that FSDP2 shards over two processes is edited, restrained, saved, loaded and merged as a whole one is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from peft_prune.models.fingerprint import same_base
from tests.processes.launching import launched
from tests.processes.sharded import logits, work
from tests.processes.test_processes import flat, furthest
from tests.tiny import willing

Lives = tuple[str, Path, list[dict[str, Tensor]], list[dict[str, Any]], dict[str, Tensor], dict[str, Any]]


@pytest.fixture(scope="module", params=[("before", "llama"), ("after", "gpt2"), ("one", "gpt2")], ids="-".join)
def lives(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Lives:
    """What each of two processes has found with a sharded base, and what one finds with a whole one."""
    how, kind = request.param
    folder = tmp_path_factory.mktemp("sharded")
    done = launched("-m", "tests.processes.sharded", folder, how, kind)
    assert done.returncode == 0, done.stderr[-3000:]
    tensors = [load_file(folder / f"rank-{rank}.safetensors") for rank in range(2)]
    figures = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]
    return kind, folder, tensors, figures, *work(tmp_path_factory.mktemp("whole"), "whole", kind)


def test_a_fresh_adapter_and_a_disabled_one_change_no_bit(lives: Lives) -> None:
    for own in lives[2]:
        for name in ("rome off", "memit off"):
            assert own[name].equal(own["fresh"])


def test_second_moments_are_those_of_the_whole_model(lives: Lives) -> None:
    _, _, tensors, figures, single, facts = lives
    for own, found in zip(tensors, figures, strict=True):
        assert furthest(own["moment"], single["moment"]) < 1e-6
        assert found["tokens"] == facts["tokens"]


@pytest.mark.parametrize("editor", ["rome", "memit"])
def test_edits_are_those_of_the_whole_model(lives: Lives, editor: str) -> None:
    _, _, tensors, figures, single, facts = lives
    for own, found in zip(tensors, figures, strict=True):
        assert furthest(own[f"{editor} raw"], single[f"{editor} raw"]) < 1e-4
        assert found[f"{editor} first"] == facts[f"{editor} first"] and "applied" in found[f"{editor} first"]
        assert found[f"{editor} states"] == facts[f"{editor} states"]


@pytest.mark.parametrize("editor", ["rome", "memit"])
def test_restraint_and_condition_are_those_of_the_whole_weight(lives: Lives, editor: str) -> None:
    _, _, tensors, figures, single, facts = lives
    assert furthest(single[f"{editor} restrained"], single[f"{editor} raw"]) > 1e-3, "the restraint acts"
    for own, found in zip(tensors, figures, strict=True):
        assert furthest(own[f"{editor} restrained"], single[f"{editor} restrained"]) < 1e-4
        assert found[f"{editor} condition"] == pytest.approx(facts[f"{editor} condition"], rel=1e-4)


def test_a_consolidation_is_that_of_the_whole_model(lives: Lives) -> None:
    _, _, tensors, figures, single, facts = lives
    assert sum(facts["consolidated states"]) > sum(facts["memit states"]), "the restraint had taken edits away"
    for own, found in zip(tensors, figures, strict=True):
        assert furthest(own["consolidated"], single["consolidated"]) < 1e-4
        assert furthest(own["consolidated logits"], single["consolidated logits"]) < 1e-4
        assert found["consolidated states"] == facts["consolidated states"]
        assert found["consolidation"] == pytest.approx(facts["consolidation"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("editor", ["rome", "memit"])
def test_a_merge_is_that_of_the_whole_weight_and_is_taken_back(lives: Lives, editor: str) -> None:
    _, _, tensors, _, single, _ = lives
    for own in tensors:
        assert furthest(own[f"{editor} merged weight"], single[f"{editor} merged weight"]) < 1e-5
        assert furthest(own[f"{editor} merged"], own[f"{editor} logits"]) < 1e-4
        assert own[f"{editor} still merged"].equal(own[f"{editor} merged"])
        assert furthest(own[f"{editor} base seen while merged"], single[f"{editor} base seen while merged"]) == 0
        assert own[f"{editor} unmerged"].equal(own[f"{editor} logits"])


def test_evaluation_gives_the_figures_of_the_whole_model(lives: Lives) -> None:
    *_, figures, _, facts = lives
    for found in figures:
        for name in ("rome evaluation", "memit evaluation"):
            assert flat(found[name]) == pytest.approx(flat(facts[name]), rel=1e-4, nan_ok=True)


def test_a_saved_adapter_comes_back_over_a_sharded_base_and_over_a_whole_one(lives: Lives) -> None:
    kind, folder, tensors, _, single, _ = lives
    model = PeftModel.from_pretrained(willing(kind), folder / "memit").eval()
    assert furthest(logits(model), single["again"]) < 1e-4
    for own in tensors:
        assert furthest(own["again product"], own["memit restrained"]) < 1e-5
        assert furthest(own["again"], own["memit logits"]) < 1e-4
        assert furthest(own["added"], single["added"]) < 1e-4


def test_merging_for_good_leaves_a_plain_sharded_model(lives: Lives) -> None:
    _, _, tensors, figures, single, facts = lives
    for own, found in zip(tensors, figures, strict=True):
        assert furthest(own["unloaded weight"], single["unloaded weight"]) < 1e-5
        assert furthest(own["unloaded"], own["added"]) < 1e-4
        assert found["report"].keys() == facts["report"].keys() and max(found["report"].values()) < 1e-3


def test_a_sharded_base_has_the_fingerprint_of_the_whole_one(lives: Lives) -> None:
    *_, figures, _, facts = lives
    assert all(same_base(found["base"], facts["base"]) for found in figures)


def test_all_processes_hold_the_same_bits(lives: Lives) -> None:
    first, second = lives[2]
    assert all(torch.equal(first[name], second[name]) for name in first)
