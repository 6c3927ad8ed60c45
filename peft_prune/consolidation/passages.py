"""What consolidation reads, as tokens: edits behind contexts, and pieces of other text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from transformers import PreTrainedTokenizerBase

from ..editors.asking import asks_in_chat, chat_answer, chat_question
from ..editors.contexts import with_prefix
from ..errors import InvalidRequestError
from ..models.tokenization import continuation_ids, text_ids
from ..requests import EditRequest

CONTEXT_WORDS = (2, 8)
"""Fewest and most words of a text that stand before a prompt."""
CHAT_READS = 3
"""How often the question in chat comes among the ways in which an edit is asked."""


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
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    texts: Sequence[str],
    contexts: int,
    seed: int,
    phrasings: Sequence[Sequence[str]] = (),
) -> list[list[Passage]]:
    """For each request its bare prompt, then the prompt behind so many contexts of its own, then its phrasings.

    Each phrasing comes bare and behind a context; the target follows in all of them. What is asked in chat comes in
    the chat template as well, with the whole answer that holds the edit.

    Args:
        tokenizer: The model's.
        requests: The edits.
        texts: Contexts are their first words.
        contexts: For each request.
        seed: Of the choice among texts and lengths.
        phrasings: For each request other prompts with ``{}`` where it has a subject; empty where there are none.
    """
    draw = random.Random(seed)
    usable = [text.split() for text in texts if text.split() and not set("{}") & set(text)]

    def context() -> str:
        words = draw.choice(usable)
        return " ".join(words[: draw.randint(*CONTEXT_WORDS)])

    prompts, targets, separators, counts = [], [], [], []
    for request, others in zip(requests, phrasings or [()] * len(requests), strict=True):
        asked_for = [(request.prompt, "")]
        asked_for += [(request.prompt, context()) for _ in range(contexts if usable else 0)]
        for other in others:
            asked_for += [(other, "")] + ([(other, context())] if usable else [])
        templates = [with_prefix(tokenizer, prefix, prompt) for prompt, prefix in asked_for]
        prompts += [request.filled(template) for template in templates]
        targets += [request.target_new] * len(templates)
        separators += [request.separator] * len(templates)
        spoken = [chat_question(tokenizer, request)] * CHAT_READS if asks_in_chat(request) else []
        prompts += [one.text for one in spoken]
        targets += [chat_answer(request) for _ in spoken]
        separators += [one.separator for one in spoken]
        counts.append(len(templates) + len(spoken))
    pairs = iter(continuation_ids(tokenizer, prompts, targets, separators))
    return [[asked(pair.prompt, pair.target) for pair in islice(pairs, count)] for count in counts]


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
