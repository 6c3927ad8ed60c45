"""Where the subject ends in a text, in tokens, from the tokenizer's own offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..errors import InvalidRequestError, UnsupportedModelError
from ..models.tokenization import opened, opening_ids


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt with its subject in place.

    Args:
        ids: Token ids, with what the tokenizer puts in front of a text.
        subject_last: Index of the token that holds the subject's last character.
    """

    ids: tuple[int, ...]
    subject_last: int


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, templates: Sequence[str], subject: str, endings: Sequence[str] | None = None
) -> list[TokenizedPrompt]:
    """Tokenize templates with one ``{}`` each, the subject in its place.

    The subject's place is that of the ``{}``, also where the subject's name occurs elsewhere in the text.

    Args:
        tokenizer: The model's tokenizer, a fast one.
        templates: Prompts with ``{}``.
        subject: What is put there.
        endings: What stands behind each prompt, such as a separator that a request brings.

    Raises:
        UnsupportedModelError: The tokenizer is a slow one and gives no offsets.
        InvalidRequestError: A template does not hold ``{}`` exactly once, or no token covers the subject's end.
    """
    parts = []
    for index, template in enumerate(templates):
        if template.count("{}") != 1:
            raise InvalidRequestError(f"prompt: {template!r} must hold the subject's place '{{}}' exactly once")
        before, _, after = template.partition("{}")
        parts.append((before, after + ("" if endings is None else endings[index])))
    return tokenize_around(tokenizer, parts, subject)


def tokenize_around(
    tokenizer: PreTrainedTokenizerBase, parts: Sequence[tuple[str, str]], subject: str
) -> list[TokenizedPrompt]:
    """Tokenize texts of which is given what stands before and behind the subject.

    Raises:
        UnsupportedModelError: The tokenizer is a slow one and gives no offsets.
        InvalidRequestError: No token covers the subject's end.
    """
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"tokenizer: {type(tokenizer).__name__} gives no offsets; a fast tokenizer is accepted"
        )
    opening = opening_ids(tokenizer)
    prompts = []
    for before, after in parts:
        text, end = before + subject + after, len(before) + len(subject.rstrip())
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        position = _covering(encoded["offset_mapping"], end - 1)
        if position is None:
            raise InvalidRequestError(f"subject: no token of {text!r} holds the end of {subject!r}")
        ids, moved = opened(opening, encoded["input_ids"])
        prompts.append(TokenizedPrompt(ids, position + moved))
    return prompts


def _covering(offsets: Sequence[tuple[int, int]], character: int) -> int | None:
    covering = [index for index, (start, end) in enumerate(offsets) if start <= character < end]
    # the bytes of one character may be spread over several tokens; its last one completes the subject
    return covering[-1] if covering else None
