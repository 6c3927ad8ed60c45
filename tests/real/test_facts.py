"""The hundred facts of our own: their form. That the model knows them is tested on the model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from peft_prune import load_requests

FACTS = Path(__file__).resolve().parents[2] / "examples" / "facts.jsonl"


def test_there_are_a_hundred_facts_on_a_hundred_subjects_of_many_kinds() -> None:
    facts = load_requests(FACTS)
    assert len(facts) == 100
    assert len({fact.subject for fact in facts}) == len({fact.text for fact in facts}) == 100
    kinds = Counter(fact.relation_id for fact in facts)
    assert len(kinds) >= 12 and max(kinds.values()) <= 12


def test_every_fact_has_two_paraphrases_and_neighbors_and_a_question() -> None:
    questions = [json.loads(line)["question"] for line in FACTS.read_text(encoding="utf-8").splitlines()]
    for fact, question in zip(load_requests(FACTS), questions, strict=True):
        assert fact.target_true is not None and fact.target_new.casefold() != fact.target_true.casefold()
        assert len(fact.paraphrase_prompts) == 2 and 2 <= len(fact.neighborhood_prompts) <= 4
        subject = fact.subject.casefold()
        assert all(subject in prompt.casefold() for prompt in (*fact.paraphrase_prompts, question))
        assert question.endswith("?") and fact.text not in fact.paraphrase_prompts
        assert not any(subject in prompt.casefold() for prompt in fact.neighborhood_prompts)
        prompts = (fact.text, *fact.paraphrase_prompts, *fact.neighborhood_prompts)
        assert len(set(prompts)) == len(prompts)
        # none gives an answer away
        assert not any(fact.target_new.casefold() in prompt.casefold() for prompt in (*prompts, question))
        assert not any(fact.target_true.casefold() in prompt.casefold() for prompt in prompts)
