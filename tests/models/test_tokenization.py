"""Prompts and targets as token ids."""

from __future__ import annotations

import pytest

from peft_prune.errors import InvalidRequestError
from peft_prune.models.tokenization import continuation_ids, opening_ids, prompt_ids, text_ids
from tests.talking import bos_tokenizer, spaced_tokenizer


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
