"""Prompts and targets as token ids."""

from __future__ import annotations

import pytest

from peft_prune.errors import InvalidRequestError
from peft_prune.models.tokenization import continuation_ids, opening_ids, prompt_ids, text_ids
from tests.talking import bos_tokenizer, chat_tokenizer, spaced_tokenizer


@pytest.mark.parametrize("tokenizer", [spaced_tokenizer(), bos_tokenizer(), bos_tokenizer(with_eos=True)])
def test_prompt_and_target_together_spell_the_text_with_one_space(tokenizer) -> None:
    (pair,) = continuation_ids(tokenizer, ["sea stone "], [" east nest"])
    assert tokenizer.decode(pair.prompt, skip_special_tokens=True) == "sea stone"
    assert tokenizer.decode([*pair.prompt, *pair.target], skip_special_tokens=True) == "sea stone east nest"


@pytest.mark.parametrize("tokenizer", [spaced_tokenizer(), bos_tokenizer(), bos_tokenizer(with_eos=True)])
def test_a_target_holds_no_special_token(tokenizer) -> None:
    (pair,) = continuation_ids(tokenizer, ["sea"], ["east"])
    assert not set(pair.target) & set(tokenizer.all_special_ids)


def test_a_bos_stands_in_front_once_and_an_eos_nowhere() -> None:
    for tokenizer in (bos_tokenizer(), bos_tokenizer(with_eos=True)):
        assert opening_ids(tokenizer) == (tokenizer.bos_token_id,)
        (ids,) = prompt_ids(tokenizer, ["sea stone"])
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.eos_token_id not in ids
    assert opening_ids(spaced_tokenizer()) == ()


def test_the_space_belongs_to_the_target_in_a_byte_level_tokenizer() -> None:
    tokenizer = spaced_tokenizer()
    (pair,) = continuation_ids(tokenizer, ["sea"], ["east"])
    assert list(pair.target) == tokenizer(" east")["input_ids"]


def test_no_space_is_added_after_a_line_break() -> None:
    tokenizer = bos_tokenizer()
    (pair,) = continuation_ids(tokenizer, ["sea\n"], ["east"])
    assert [*pair.prompt, *pair.target] == tokenizer("sea\neast")["input_ids"]


def test_a_text_keeps_the_spaces_at_its_end() -> None:
    tokenizer = spaced_tokenizer()
    assert list(text_ids(tokenizer, ["sea "])[0]) == tokenizer("sea ")["input_ids"]


def test_what_gives_no_token_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="prompt: ' '"):
        prompt_ids(spaced_tokenizer(), ["sea", " "])
    with pytest.raises(InvalidRequestError, match="target: ' ' is empty"):
        continuation_ids(bos_tokenizer(), ["sea"], [" "])


@pytest.mark.parametrize("opening", ["<s>", "<|begin|>", "<gmask><sop>"])
def test_a_text_that_begins_with_the_opening_gets_no_second_one(opening: str) -> None:
    tokenizer = chat_tokenizer(opening)
    front = opening_ids(tokenizer)
    assert tokenizer.decode(front).replace(" ", "") == opening
    bare, written, twice = text_ids(tokenizer, ["sea stone", f"{opening}sea stone", f"{opening}{opening}sea stone"])
    assert bare == written == twice == (*front, *tokenizer("sea stone", add_special_tokens=False)["input_ids"])
    (pair,) = continuation_ids(tokenizer, [f"{opening}sea"], ["east"])
    assert pair == continuation_ids(tokenizer, ["sea"], ["east"])[0]


def test_what_a_text_writes_of_several_opening_tokens_is_completed() -> None:
    tokenizer = chat_tokenizer("<gmask><sop>")
    assert text_ids(tokenizer, ["<sop>sea"]) == text_ids(tokenizer, ["<gmask>sea"]) == text_ids(tokenizer, ["sea"])


def test_a_tokenizer_without_an_opening_leaves_a_written_bos_alone() -> None:
    tokenizer = spaced_tokenizer()
    (ids,) = text_ids(tokenizer, ["<end>sea"])
    assert list(ids) == tokenizer("<end>sea")["input_ids"] and ids[0] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("中国的首都是", "上海", "中国的首都是上海"),
        ("Answer: (", "A", "Answer: (A"),
        ("He was born in Paris", ", Texas", "He was born in Paris, Texas"),
        ("Its price is $", "9", "Its price is $9"),
        ("Paris is in", "France", "Paris is in France"),
    ],
)
def test_the_target_stands_as_written_behind_the_tokens_of_the_prompt(prompt: str, target: str, text: str) -> None:
    tokenizer = chat_tokenizer()
    (pair,) = continuation_ids(tokenizer, [prompt], [target])
    assert pair.prompt == prompt_ids(tokenizer, [prompt])[0]
    assert tokenizer.decode(pair.prompt[1:] + pair.target) == text


def test_a_target_that_would_share_a_token_with_its_prompt_is_tokenized_for_itself() -> None:
    tokenizer = chat_tokenizer()
    joint = tokenizer("see (A", add_special_tokens=False)["input_ids"]
    assert "(A" in [tokenizer.decode([one]) for one in joint]
    (pair,) = continuation_ids(tokenizer, ["see ("], ["A"])
    assert tokenizer.decode(pair.prompt[1:]) == "see (" and tokenizer.decode(pair.target) == "A"


def test_no_space_is_put_behind_a_special_token_of_a_chat_template() -> None:
    tokenizer = chat_tokenizer("<gmask><sop>")
    (pair,) = continuation_ids(tokenizer, ["sea<sop>"], ["east"])
    assert tokenizer.decode(pair.target) == "east"


def test_a_request_says_what_stands_between() -> None:
    tokenizer = spaced_tokenizer()
    pairs = continuation_ids(tokenizer, ["sea"] * 3, ["east"] * 3, ["", None, " tea "])
    assert [tokenizer.decode(one.prompt + one.target) for one in pairs] == ["seaeast", "sea east", "sea tea east"]
    assert [tokenizer.decode(one.target) for one in pairs] == ["east", " east", " east"]
