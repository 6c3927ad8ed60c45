"""Token ids of prompts and of what follows them: the special tokens in front, never in the middle or behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..errors import InvalidRequestError


@dataclass(frozen=True)
class Continuation:
    """A prompt and what is read after it, as token ids.

    Args:
        prompt: Ids of the prompt, with the special tokens that the tokenizer puts in front of a text.
        target: Ids of the continuation; at least one, and no special token.
    """

    prompt: tuple[int, ...]
    target: tuple[int, ...]


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Ids of each text as it stands: with the tokenizer's BOS where it adds one, without its EOS."""
    opening = opening_ids(tokenizer)
    return [opening + ids for ids in _plain_ids(tokenizer, texts)]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Ids of each prompt, as :func:`text_ids` gives them, without the spaces at its end.

    A word's leading space belongs to that word's own token, so a prompt that keeps it can hardly be continued.

    Raises:
        InvalidRequestError: A prompt gives no token.
    """
    sequences = text_ids(tokenizer, [_bare(prompt) for prompt in prompts])
    for prompt, ids in zip(prompts, sequences, strict=True):
        if not ids:
            raise InvalidRequestError(f"prompt: {prompt!r} gives no token")
    return sequences


def continuation_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str]
) -> list[Continuation]:
    """Ids of each prompt and of its target, tokenized together as one text with one space between them.

    The target's ids are what the joint text has beyond the ids that it shares with the prompt alone, so a tokenizer
    that glues a BOS in front or an EOS behind, or that marks a word's beginning in its own way, is treated right.

    Args:
        tokenizer: The model's tokenizer.
        prompts: Texts to continue.
        targets: One continuation for each prompt, with or without a leading space.

    Raises:
        InvalidRequestError: A prompt or a target gives no token of its own.
    """
    for target in targets:
        if not target.strip():
            raise InvalidRequestError(f"target: {target!r} is empty")
    joint = text_ids(tokenizer, [_joined(prompt, target) for prompt, target in zip(prompts, targets, strict=True)])
    pairs = []
    for prompt, target, start, ids in zip(prompts, targets, prompt_ids(tokenizer, prompts), joint, strict=True):
        shared = _shared_length(start, ids)
        if shared == 0:
            raise InvalidRequestError(f"prompt: {prompt!r} gives no token of its own before {target!r}")
        if shared == len(ids):
            raise InvalidRequestError(f"target: {target!r} gives no token after {prompt!r}")
        pairs.append(Continuation(ids[:shared], ids[shared:]))
    return pairs


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts in front of a text, such as a BOS; often none."""
    count = tokenizer.num_special_tokens_to_add(pair=False)
    if count == 0:
        return ()
    marked = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    ids = list(marked["input_ids"])
    for start in range(len(ids) - len(plain) + 1):
        if plain and ids[start : start + len(plain)] == list(plain):
            return tuple(ids[:start])
    return tuple(ids[: _leading_ones(marked["special_tokens_mask"])])


def _leading_ones(mask: Sequence[int]) -> int:
    return next((index for index, flag in enumerate(mask) if not flag), len(mask))


def _plain_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[int, ...]]:
    if not texts:
        return []
    return [tuple(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]


def _bare(prompt: str) -> str:
    return prompt.rstrip(" ")


def _joined(prompt: str, target: str) -> str:
    bare = _bare(prompt)
    separator = "" if not bare or bare[-1].isspace() else " "
    return bare + separator + target.strip()


def _shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    limit = min(len(first), len(second))
    return next((index for index in range(limit) if first[index] != second[index]), limit)
