"""Figures in chat: of requests that are asked so, from the model's own answers to questions in the template."""

from __future__ import annotations

from dataclasses import replace

import pytest

from peft_prune import EditRequest
from peft_prune.evaluation import evaluate, request_answers, request_outcomes
from peft_prune.evaluation.kinds import KINDS
from peft_prune.evaluation.scores import SCORED
from tests.talking import dense_greedy, speaking_model, speaking_tokenizer

REQUESTS = [
    EditRequest("note {} sea", subject, "ten", "net", ("tan seat eat", "The note of oats is"), ("stone eat",), ask=ask)
    for subject, ask in (("tone seat", "both"), ("oats", None), ("tea", "chat"))
]


def test_every_prompt_is_asked_as_a_question_in_the_template() -> None:
    model, tokenizer = speaking_model(), speaking_tokenizer()
    answers = request_answers(model, tokenizer, REQUESTS)
    assert [one is not None for one in answers.chat] == [True, False, True]
    assert answers.chat[0] is not None
    found = (answers.chat[0].prompt, *answers.chat[0].paraphrases, *answers.chat[0].others)
    questions = (
        *("Complete: note tone seat sea", "Complete: tan seat eat", "What is the note of oats?"),
        "Complete: stone eat",
    )
    length = len(tokenizer(" ten")["input_ids"]) - 1
    for answer, question in zip(found, questions, strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        given = dense_greedy(model, ids, max(length, 3) + 24, model.config.eos_token_id)
        assert tokenizer.decode(given, skip_special_tokens=True).startswith(answer) and answer


def test_outcomes_count_what_was_said_and_only_of_those_asked_so() -> None:
    model, tokenizer = speaking_model(), speaking_tokenizer()
    answers = request_answers(model, tokenizer, REQUESTS)
    assert answers.chat[0] is not None
    told = replace(answers.chat[0], prompt="It is ten.", paraphrases=("ten", "It is net."), others=("It is sea. Or",))
    base = replace(told, others=("It is sea. Not",))
    own = replace(answers, chat=(told, None, replace(told, others=("No.",))))
    found = request_outcomes(
        model, tokenizer, REQUESTS, answers=own, base_answers=replace(answers, chat=(base, None, base))
    )
    assert found["efficacy_chat"] == [(True,), (), (True,)]
    assert found["generalization_chat"] == [(True, False), (), (True, False)]
    assert found["locality_chat"] == [(True,), (), (False,)]
    without = request_outcomes(model, tokenizer, REQUESTS, answers=own, base_answers=None)
    assert without["locality_chat"] == [(), (), ()]
    with pytest.raises(ValueError, match="answers: hold answers in chat to other requests"):
        request_outcomes(model, tokenizer, REQUESTS, answers=replace(own, chat=(None, None, told)), base_answers=None)


def test_the_base_keeps_its_own_answers_and_the_figures_stand_beside_the_plain_ones() -> None:
    model, tokenizer = speaking_model(), speaking_tokenizer()
    plain = [replace(request, ask=None) for request in REQUESTS]
    figures = evaluate(model, tokenizer, plain)["before"]
    assert [figures[f"{kind}_chat"]["n"] for kind in SCORED] == [3, 6, 3]
    assert figures["locality_chat"]["value"] == 1.0
    assert {f"{kind}_chat" for kind in SCORED} <= set(KINDS)


def test_a_model_without_a_template_and_one_asked_plainly_have_the_figures_that_they_had() -> None:
    model = speaking_model()
    plain = [replace(request, ask=None) for request in REQUESTS]
    one = evaluate(model, speaking_tokenizer(None), plain)
    assert not [name for name in one["before"] if name.endswith("_chat")]
    assert evaluate(model, speaking_tokenizer(), plain, ask="plain") == one
