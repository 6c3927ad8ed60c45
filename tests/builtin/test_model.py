"""The shipped model, as a user loads it."""

from __future__ import annotations

import json

import pytest

from peft_prune.builtin import (
    ability_items,
    builtin_model_path,
    held_out_texts,
    known_facts,
    load_builtin_model,
)
from peft_prune.evaluation import EXTRACTORS, perplexity, score_ability
from peft_prune.models.answers import answers_with
from peft_prune.models.generation import greedy_answers


@pytest.fixture(scope="module")
def loaded():
    return load_builtin_model()


@pytest.fixture(scope="module")
def quality() -> dict:
    return json.loads((builtin_model_path() / "quality.json").read_text())


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in builtin_model_path().iterdir()) <= 6_000_000
    assert 1e6 <= sum(parameter.numel() for parameter in load_builtin_model()[0].parameters()) <= 3e6


def test_it_knows_its_world(loaded, quality) -> None:
    model, tokenizer = loaded
    facts = known_facts()
    answers = greedy_answers(model, tokenizer, [fact["prompt"] for fact in facts], max_new_tokens=8, stop=".")
    share = sum(answers_with(a, fact["object"]) for a, fact in zip(answers, facts, strict=True)) / len(facts)
    assert quality["facts"]["value"] >= 0.98
    assert share >= 0.98 and abs(share - quality["facts"]["value"]) < 0.005


@pytest.mark.parametrize("name", ["reasoning", "summarization", "question_answering", "inference"])
def test_it_has_the_four_abilities_on_held_out_items(loaded, quality, name: str) -> None:
    items = ability_items(name, 100, held_out=True)
    score = score_ability(*loaded, items, extract=EXTRACTORS[name]).value
    assert score >= 0.9
    # the last digits of a logit depend on the machine
    assert score == pytest.approx(quality[name]["value"], abs=0.03)


def test_its_perplexity_on_held_out_texts_is_the_stated_one(loaded, quality) -> None:
    assert perplexity(*loaded, held_out_texts()) == pytest.approx(quality["held_out_perplexity"], rel=0.01)


def test_its_tokenizer_gives_offsets_and_adds_nothing(loaded) -> None:
    _, tokenizer = loaded
    assert tokenizer.is_fast and tokenizer.num_special_tokens_to_add() == 0
    assert tokenizer.decode(tokenizer("Ada has 12 apples.")["input_ids"]) == "Ada has 12 apples."
