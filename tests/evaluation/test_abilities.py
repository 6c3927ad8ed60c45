"""Abilities: what counts as an answer, and the share of right ones."""

from __future__ import annotations

import pytest

from peft_prune.errors import InvalidRequestError
from peft_prune.evaluation import EXTRACTORS, Proportion, final_number, score_ability, whole_answer
from peft_prune.models.answers import normalized
from peft_prune.models.tokenization import prompt_ids
from tests.talking import dense_greedy, sentences


def test_ability_is_the_share_of_exact_matches(pair) -> None:
    model, tokenizer = pair
    items, hits = [], []
    for index, prompt in enumerate(sentences(20, seed=11)):
        ids = dense_greedy(model, prompt_ids(tokenizer, [prompt])[0], 5)
        answer = tokenizer.decode(ids, skip_special_tokens=True)
        right = index % 3 == 0 and bool(answer.strip())
        items.append({"prompt": prompt, "answer": f" {answer.upper()} " if right else f"not {answer}"})
        hits.append(right)
    assert any(hits)
    for batch_size in (1, 6):
        measured = score_ability(model, tokenizer, items, max_new_tokens=5, batch_size=batch_size)
        assert measured == Proportion.of(hits)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 3 = 5\n#### 1,234", "1234"),
        ("so 3 apples and 4 pears make 7.", "7"),
        ("#### 18.00 dollars, 5 more", "18"),
        ("it falls to -2.50", "-2.5"),
        ("#### none, but 4 before", "4"),
        ("100", "100"),
        ("#### 5\n\nQuestion: 2 + 2?\nAnswer: 4\n#### 4", "5"),
        ("the range 3-7", "7"),
        ("-0.0", "0"),
        ("minus as a sign: −3", "-3"),
        ("the 10,000th", "10000"),
        ("no number", None),
    ],
)
def test_the_final_number_is_found(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_a_whole_answer_is_compared_without_capitals_and_spaces() -> None:
    assert whole_answer("  New \n York ") == normalized("new york") == "new york"
    assert whole_answer(" ") is None


def test_the_registry_of_extractors_cannot_be_changed() -> None:
    assert EXTRACTORS["reasoning"] is final_number
    with pytest.raises(TypeError):
        EXTRACTORS["reasoning"] = whole_answer  # type: ignore[index]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"prompt": "a"}, "item 1: answer: None"),
        ({"prompt": " ", "answer": "1"}, "item 1: prompt: ' '"),
        ({"prompt": "a", "answer": "none"}, "item 1: answer: 'none' holds no answer"),
    ],
)
def test_a_malformed_item_names_its_index_and_field(pair, item: dict, message: str) -> None:
    model, tokenizer = pair
    with pytest.raises(InvalidRequestError, match=message):
        score_ability(model, tokenizer, [{"prompt": "a", "answer": "1"}, item], extract=final_number)
