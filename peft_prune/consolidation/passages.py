"""What consolidation reads, as tokens: edits behind contexts, and pieces of other text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..editors.contexts import with_prefix
from ..errors import InvalidRequestError
from ..models.tokenization import continuation_ids, text_ids
from ..requests import EditRequest

CONTEXT_WORDS = (2, 8)
"""Fewest and most words of a text that stand before a prompt."""


@dataclass(frozen=True, eq=False)
class Passage:
    """A row of tokens.

    Args:
        ids: Token ids.
        read: Positions whose logits are read, in ascending order.
        labels: The token that is asked for at each of them; none for text that is only to be read as before.
    """

    ids: tuple[int, ...]
    read: tuple[int, ...]
    labels: tuple[int, ...] = ()


def edit_passages(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], texts: Sequence[str], contexts: int, seed: int
) -> list[list[Passage]]:
    """For each request its bare prompt, then the prompt behind so many contexts of its own; all with the target.

    Args:
        texts: Contexts are their first words.
        contexts: For each request.
        seed: Of the choice among texts and lengths.
    """
    draw = random.Random(seed)
    usable = [text.split() for text in texts if text.split() and not set("{}") & set(text)]
    prompts, targets, separators = [], [], []
    for request in requests:
        prefixes = [""]
        for _ in range(contexts if usable else 0):
            words = draw.choice(usable)
            prefixes.append(" ".join(words[: draw.randint(*CONTEXT_WORDS)]))
        templates = [with_prefix(tokenizer, prefix, request.prompt) for prefix in prefixes]
        prompts += [template.replace("{}", request.subject) for template in templates]
        targets += [request.target_new] * len(templates)
        separators += [request.separator] * len(templates)
    pairs = continuation_ids(tokenizer, prompts, targets, separators)
    rows = [asked(pair.prompt, pair.target) for pair in pairs]
    each = len(rows) // max(1, len(requests))
    return [rows[start : start + each] for start in range(0, len(rows), each)]


def asked(prompt: Sequence[int], target: Sequence[int]) -> Passage:
    """A prompt with its target behind it, every token of which is asked for."""
    ids = (*prompt, *target[:-1])
    return Passage(tuple(ids), tuple(range(len(prompt) - 1, len(ids))), tuple(target))


def text_passages(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> list[Passage]:
    """The texts in pieces of at most ``length`` tokens, read at every token.

    Raises:
        InvalidRequestError: No text has two tokens.
    """
    found = []
    for ids in text_ids(tokenizer, texts):
        for start in range(0, len(ids), length):
            piece = ids[start : start + length]
            if len(piece) > 1:
                found.append(Passage(piece, tuple(range(len(piece)))))
    if not found:
        raise InvalidRequestError(
            f"texts: none of the {len(texts)} retention texts has two tokens; give ordinary text, or none to let the "
            "model write it"
        )
    return found
