"""The question that a prompt asks, and the fields by which a request says how it is asked."""

from __future__ import annotations

import pytest

from peft_prune import EditRequest
from peft_prune.errors import InvalidRequestError
from peft_prune.requests import load_requests
from peft_prune.requests.asking import answer_form, question_form


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("The mother tongue of {} is", "What is the mother tongue of {}?"),
        ("The parents of {} were the", "What were the parents of {}?"),
        ("{}'s profession is an", "What is {}'s profession?"),
        ("Where is {}? It is located in", "Where is {}?"),
        ("What is the capital of {}?", "What is the capital of {}?"),
        ("Who? {} was", "Complete: Who? {} was"),
        ("{} plays for", "Complete: {} plays for"),
        ("He left. The mother tongue of {} is", "Complete: He left. The mother tongue of {} is"),
        ("The king, of {} is", "Complete: The king, of {} is"),
        ("The {braces} of {} is", "What is the {braces} of {}?"),
        ("The capital of St. Lucia is", "What is the capital of St. Lucia?"),
    ],
)
def test_a_prompt_becomes_a_question_where_the_rule_is_certain_and_is_framed_else(prompt: str, question: str) -> None:
    assert question_form(prompt) == question


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The mother tongue of {} is", "The mother tongue of {} is"),
        ("Where is {}?  It is\nlocated in", "It is located in"),
        ("Where is {}?", ""),
        ("Who? {} was", "Who? {} was"),
    ],
)
def test_an_answer_begins_with_the_prompt_or_with_what_stands_behind_its_question(prompt: str, answer: str) -> None:
    assert answer_form(prompt) == answer


def test_a_question_may_name_its_subject_and_what_is_not_given_is_not_written() -> None:
    one = EditRequest("{} is in", "Lima", "Chile", question="Where is Lima?", ask="chat")
    assert one.question == "Where is {}?"
    assert EditRequest.stored(one.document()) == one
    assert not {"question", "ask"} & set(EditRequest("{} is in", "Lima", "Chile").document())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ask": "loud"}, "ask: 'loud' is not one of plain, chat, both"),
        ({"ask": ["chat"]}, "ask: ['chat'] is not one of plain, chat, both"),
        ({"question": ""}, "question: '' is empty"),
        ({"question": 7}, "question: 7 must be a string, is int"),
        ({"question": "Where is Quito?"}, "question: 'Where is Quito?' must hold '{}' or name the subject 'Lima'"),
        ({"question": "{} or {}?"}, "question: '{} or {}?' must hold the subject's place '{}' once"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        EditRequest.from_record({"prompt": "{} is in", "subject": "Lima", "target_new": "Chile", **fields})
    assert str(error.value) == said


def test_files_bring_both_fields_and_a_question_within_a_fact_stays_a_paraphrase(tmp_path) -> None:
    table = tmp_path / "requests.csv"
    table.write_text(
        "prompt,subject,target_new,question,ask\n{} is in,Lima,Chile,Where is {}?,chat\n{} is in,Rome,Peru,,\n"
    )
    first, second = load_requests(table)
    assert (first.question, first.ask) == ("Where is {}?", "chat")
    assert (second.question, second.ask) == (None, None)
    fact = {"prompt": "{} is in", "subject": "Lima", "target_new": {"str": "Chile"}, "question": "Where is Lima?"}
    (of_mquake,) = EditRequest.all_from_record({"requested_rewrite": [fact]})
    assert of_mquake.question is None and of_mquake.paraphrase_prompts == ("Where is Lima?",)
    own = EditRequest.from_record({"requested_rewrite": {**fact, "question": None}, "question": "Where is Lima?"})
    assert own.question == "Where is {}?"
