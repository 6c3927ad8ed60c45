"""The generated world and what is held out of the training texts."""

from __future__ import annotations

from itertools import islice

import pytest

from peft_prune import EditRequest
from peft_prune.builtin import (
    ability_items,
    ability_names,
    build_world,
    edit_requests,
    held_out_texts,
    known_facts,
    plain_texts,
    training_texts,
)

TRUE = {(fact.subject, fact.relation.identifier): fact.object for fact in build_world().facts}


def test_everything_is_deterministic_by_seed() -> None:
    assert edit_requests(60) == edit_requests(60) != edit_requests(60, seed=1)
    assert list(islice(training_texts(0), 50)) == list(islice(training_texts(0), 50))
    assert plain_texts(20) == plain_texts(20)
    for name in ability_names():
        assert ability_items(name, 20, held_out=True) == ability_items(name, 20, held_out=True)


def test_requests_are_counterfact_records_about_different_subjects() -> None:
    records = edit_requests(200)
    assert len({record["requested_rewrite"]["subject"] for record in records}) == 200
    for record in records:
        request = EditRequest.from_record(record)
        rewrite = record["requested_rewrite"]
        assert TRUE[request.subject, rewrite["relation_id"]] == request.target_true != request.target_new
        assert len(request.paraphrase_prompts) == 2
        assert all(request.subject in prompt for prompt in request.paraphrase_prompts)


def test_every_neighborhood_prompt_is_about_another_subject_with_the_same_true_object() -> None:
    subjects = {fact.subject for fact in build_world().facts}
    for record in edit_requests(200):
        rewrite = record["requested_rewrite"]
        assert record["neighborhood_prompts"]
        for prompt in record["neighborhood_prompts"]:
            (subject,) = [name for name in subjects if name in prompt]
            assert subject != rewrite["subject"]
            assert TRUE[subject, rewrite["relation_id"]] == rewrite["target_true"]["str"]


def test_the_world_is_large_enough_and_asking_for_more_is_refused() -> None:
    assert len(known_facts()) >= 600
    with pytest.raises(ValueError, match="count: 5000 is more than"):
        edit_requests(5000)
    with pytest.raises(ValueError, match="name: 'cooking' is not one of"):
        ability_items("cooking", 1, held_out=True)


def test_held_out_items_and_texts_are_in_no_training_text() -> None:
    prompts = {item["prompt"] for name in ability_names() for item in ability_items(name, 100, held_out=True)}
    held_out = set(held_out_texts())
    for stage in ("world", "abilities"):
        for text in islice(training_texts(0, stage), 20_000):
            assert text not in held_out
            assert not any(text.startswith(prompt) for prompt in (text[: text.rfind(":") + 1],) if prompt in prompts)


def test_the_fact_behind_a_held_out_question_is_stated_in_the_training_texts() -> None:
    stated = " ".join(islice(training_texts(0), 8_000))
    for fact in build_world().facts[::40]:
        templates = (fact.relation.prompt, *fact.relation.paraphrases)
        assert any(fact.sentence(template) in stated for template in templates)
