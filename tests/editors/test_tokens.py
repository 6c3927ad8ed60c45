from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from peft_prune.editors.contexts import with_prefix
from peft_prune.editors.tokens import tokenize_prompts
from peft_prune.errors import InvalidRequestError, UnsupportedModelError
from peft_prune.models.tokenization import text_ids
from tests.talking import bos_tokenizer, chat_tokenizer, spaced_tokenizer


def subject_of(tokenizer: PreTrainedTokenizerBase, template: str, subject: str) -> str:
    """What the tokens up to the subject's last one spell."""
    (prompt,) = tokenize_prompts(tokenizer, [template], subject)
    return tokenizer.decode(prompt.ids[: prompt.subject_last + 1], skip_special_tokens=True).strip()


@pytest.mark.parametrize("build", [spaced_tokenizer, bos_tokenizer])
@pytest.mark.parametrize(
    ("template", "subject", "expected"),
    [
        ("{} eat", "sane ant", "sane ant"),
        ("note {} sea", "tone seat", "note tone seat"),
        ("tea ten {} tone net", "nest son", "tea ten nest son"),
        ("sea ant {} sea ant", "sea ant", "sea ant sea ant"),
        ("tea {}", "oats", "tea oats"),
    ],
)
def test_the_subject_ends_where_its_place_in_the_template_ends(build, template, subject, expected) -> None:
    assert subject_of(build(), template, subject).replace(" ", "") == expected.replace(" ", "")


def test_a_token_put_in_front_moves_the_position_along() -> None:
    (prompt,) = tokenize_prompts(bos_tokenizer(), ["{} eat"], "ant")
    assert prompt.ids[0] == bos_tokenizer().bos_token_id
    assert prompt.subject_last == len(prompt.ids) - 1 - len(
        bos_tokenizer()("eat", add_special_tokens=False)["input_ids"]
    )


def test_a_character_spread_over_several_tokens_ends_at_its_last_one(shared) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "counterfact-gpt2-5m")
    (prompt,) = tokenize_prompts(tokenizer, ["{} is"], "Zürich 😀")
    rest = tokenizer.decode(prompt.ids[prompt.subject_last + 1 :])
    assert rest == " is" and tokenizer.decode(prompt.ids) == "Zürich 😀 is"


def test_a_template_without_one_place_and_a_tokenizer_without_offsets_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="exactly once"):
        tokenize_prompts(spaced_tokenizer(), ["{} and {}"], "ant")
    slow = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    type(slow).is_fast, kept = property(lambda self: False), type(slow).is_fast
    try:
        with pytest.raises(UnsupportedModelError, match="fast tokenizer"):
            tokenize_prompts(slow, ["{}"], "ant")
    finally:
        type(slow).is_fast = kept


@pytest.mark.parametrize("opening", ["<s>", "<gmask><sop>"])
def test_a_prompt_with_its_own_opening_is_the_prompt_without_one(opening: str) -> None:
    tokenizer = chat_tokenizer(opening)
    (bare,) = tokenize_prompts(tokenizer, ["sea {} is"], "tone seat")
    assert tokenize_prompts(tokenizer, [f"{opening}sea {{}} is"], "tone seat") == [bare]
    assert tokenizer.decode(bare.ids[: bare.subject_last + 1], skip_special_tokens=True) == "sea tone seat"


@pytest.mark.parametrize("opening", ["<s>", "<gmask><sop>"])
def test_a_prefix_stands_behind_the_opening_that_a_prompt_writes(opening: str) -> None:
    tokenizer = chat_tokenizer(opening)
    assert with_prefix(tokenizer, "", f"{opening}{{}} is") == f"{opening}{{}} is"
    assert with_prefix(tokenizer, "I am.", f"{opening}{{}} is") == f"{opening}I am. {{}} is"
    written, bare = (with_prefix(tokenizer, "I am.", prompt) for prompt in (f"{opening}sea", "sea"))
    assert text_ids(tokenizer, [written]) == text_ids(tokenizer, [bare])
