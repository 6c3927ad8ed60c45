"""Token ids of prompts and of what follows them: the special tokens in front once, never in the middle or behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from ..errors import InvalidRequestError
from .joining import asked, joined

_ANCHORS = ("\n", ")", "。", "a")
"""Texts behind which a continuation is tokenized that would melt into its prompt's last token."""


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
    """Ids of each text as it stands: with the tokenizer's BOS where it adds one, without its EOS.

    A text that begins with a BOS already, as a chat template writes it, gets no second one.
    """
    opening = opening_ids(tokenizer)
    return [opened(opening, ids)[0] for ids in _plain_ids(tokenizer, texts)]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Ids of each prompt, as :func:`text_ids` gives them, without the spaces at its end.

    Raises:
        InvalidRequestError: A prompt gives no token.
    """
    sequences = text_ids(tokenizer, [asked(prompt) for prompt in prompts])
    for prompt, ids in zip(prompts, sequences, strict=True):
        if not ids:
            raise InvalidRequestError(f"prompt: {prompt!r} gives no token")
    return sequences


def continuation_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    separators: Sequence[str | None] | None = None,
) -> list[Continuation]:
    """Ids of each prompt and of its target behind it, with between them what :func:`~.joining.joined` puts there.

    The prompt's ids are those of :func:`prompt_ids`, since that is what a model is asked with. The target's are what
    the joint text has beyond them, so a tokenizer that glues a BOS in front or an EOS behind, or that marks a word's
    beginning in its own way, is treated right. Where both would share a token, the target is tokenized for itself.

    Args:
        tokenizer: The model's tokenizer.
        prompts: Texts to continue.
        targets: One continuation for each prompt, with or without a leading space.
        separators: What stands between each prompt and its target; None leaves it to the rule.

    Raises:
        InvalidRequestError: A prompt or a target gives no token of its own.
    """
    between = list(separators) if separators is not None else [None] * len(prompts)
    for target in targets:
        if not target.strip():
            raise InvalidRequestError(f"target: {target!r} is empty")
    special = tuple(tokenizer.all_special_tokens)
    starts = [asked(prompt, own) for prompt, own in zip(prompts, between, strict=True)]
    texts = [
        # a chat template leaves no space behind its marks
        joined(prompt, target, "" if own is None and prompt.endswith(special) else own)
        for prompt, target, own in zip(prompts, targets, between, strict=True)
    ]
    pairs = []
    for start, text, ids, joint in zip(
        starts, texts, prompt_ids(tokenizer, starts), text_ids(tokenizer, texts), strict=True
    ):
        own_ids = joint[len(ids) :] if joint[: len(ids)] == ids else _alone(tokenizer, text[len(start) :])
        if not own_ids:
            raise InvalidRequestError(f"target: {text[len(start) :]!r} gives no token after {start!r}")
        pairs.append(Continuation(ids, own_ids))
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


def opened(opening: Sequence[int], ids: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """``ids`` of a text behind the ``opening``, once: what the text itself writes of it is not written again.

    This is the one place that decides about a BOS.

    Args:
        opening: What :func:`opening_ids` gives.
        ids: Of the text as it is written.

    Returns:
        The ids, and by how many places those of the text have moved.
    """
    written = written_opening(opening, ids)
    return (*opening, *ids[written:]), len(opening) - written


def written_opening(opening: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens at the beginning of ``ids`` are of the ``opening``."""
    return sum(1 for _ in takewhile(lambda token: token in opening, ids))


def _alone(tokenizer: PreTrainedTokenizerBase, continuation: str) -> tuple[int, ...]:
    """Ids of a continuation, without the mark that some tokenizers put at the beginning of a text."""
    for anchor in _ANCHORS:
        alone, both = _plain_ids(tokenizer, [anchor, anchor + continuation])
        if alone and both[: len(alone)] == alone and len(both) > len(alone):
            return both[len(alone) :]
    return _plain_ids(tokenizer, [continuation])[0]


def _leading_ones(mask: Sequence[int]) -> int:
    return next((index for index, flag in enumerate(mask) if not flag), len(mask))


def _plain_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[int, ...]]:
    if not texts:
        return []
    return [tuple(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]
