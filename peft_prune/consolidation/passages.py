"""What consolidation reads, as tokens: edits behind contexts, and pieces of other text."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from ..editors.asking import asks_in_chat, asks_plainly, chat_answer, chat_question
from ..editors.contexts import with_prefix
from ..errors import InvalidRequestError
from ..models.chat import SYSTEM, chat_prompt, takes_system_prompt
from ..models.decoder import unwrapped
from ..models.generation import greedy_ids
from ..models.halves import Halves
from ..models.inference import input_device, max_positions
from ..models.joining import asked as separated
from ..models.tokenization import continuation_ids, prompt_ids, text_ids
from ..requests import EditRequest

T = TypeVar("T")
R = TypeVar("R")

CONTEXT_WORDS = (2, 16)
"""Fewest and most words of a text that stand before a prompt."""
CHAT_EVERY = 4
"""One in so many retention texts is said in chat as well, where edits are asked there."""
CHAT_TOKENS = 16
"""Of the base's answer to it, at whose tokens it is retained."""


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


Kinds = list[list[Passage]]
"""The ways in which one edit is asked, by kind; the first holds what it is verified by, alone."""


def edit_passages(
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    texts: Sequence[str],
    contexts: int,
    seed: int,
    phrasings: Sequence[Sequence[str]] = (),
) -> list[Kinds]:
    """For each request the ways in which it is asked, by kind.

    Plainly these are the bare prompt; the prompt behind contexts; and the phrasings, each bare and behind a context;
    the target follows in all of them. In chat they are the question; and what else is said there, the question with a
    system prompt, the prompt as it stands and the phrasings' questions; there the whole answer that holds the edit
    follows. What has no passage is no kind.

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

    asked_for: list[list[list[_Asked]]] = []
    for request, others in zip(requests, phrasings or [()] * len(requests), strict=True):
        kinds = []
        if asks_plainly(request):
            behind = [(request.prompt, context()) for _ in range(contexts if usable else 0)]
            other = [(one, prefix) for one in others for prefix in ["", *([context()] if usable else [])]]
            kinds += [_plainly(tokenizer, request, own) for own in ([(request.prompt, "")], behind, other)]
        if asks_in_chat(request):
            kinds += _in_chat(tokenizer, request, others)
        asked_for.append([kind for kind in kinds if kind])
    every = [one for kinds in asked_for for kind in kinds for one in kind]
    pairs = iter(
        continuation_ids(
            tokenizer, [one.prompt for one in every], [one.answer for one in every], [one.separator for one in every]
        )
    )
    return [[[asked(pair.prompt, pair.target) for pair in islice(pairs, len(own))] for own in k] for k in asked_for]


@dataclass(frozen=True)
class _Asked:
    prompt: str
    answer: str
    separator: str | None


def _plainly(
    tokenizer: PreTrainedTokenizerBase, request: EditRequest, prompts: Sequence[tuple[str, str]]
) -> list[_Asked]:
    templates = [with_prefix(tokenizer, prefix, prompt) for prompt, prefix in prompts]
    texts = [request.filled(template) for template in templates]
    return [_Asked(text, request.target_new, request.separator) for text in texts]


def _in_chat(
    tokenizer: PreTrainedTokenizerBase, request: EditRequest, phrasings: Sequence[str]
) -> tuple[list[_Asked], list[_Asked]]:
    """The question, and whatever else is said."""

    def spoken(one: EditRequest, system: str | None = None) -> _Asked:
        question = chat_question(tokenizer, one, system)
        return _Asked(question.text, chat_answer(one), question.separator)

    own = spoken(request)
    others = [spoken(replace(request, question=request.prompt))]
    if takes_system_prompt(tokenizer):
        others.append(spoken(request, SYSTEM))
    others += [spoken(replace(request, prompt=prompt, question=None)) for prompt in phrasings]
    return [own], [one for one in dict.fromkeys(others) if one != own]


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


def chat_passages(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], bfloat16: bool = True
) -> list[Passage]:
    """The beginning of every `CHAT_EVERY`-th text as what a user says, with that of the model's own answer.

    An edit that is asked in chat would else change how the model answers there, whatever it is asked.

    Args:
        model: As it is to stay.
        tokenizer: Its tokenizer, with a chat template.
        texts: Retention texts.
        bfloat16: See `answered`.
    """
    said = [" ".join(text.split()[: CONTEXT_WORDS[1]]) for text in texts[::CHAT_EVERY]]
    prompts = accepted(partial(chat_prompt, tokenizer), [one for one in said if one])
    return answered(model, tokenizer, [separated(one.before, one.separator) for one in prompts], CHAT_TOKENS, bfloat16)


def accepted(ask: Callable[[T], R], given: Sequence[T]) -> list[R]:
    """What a chat template makes of each; what it refuses, or does not write as it is, is left out."""
    found = []
    for one in given:
        with suppress(InvalidRequestError):
            found.append(ask(one))
    return found


def answered(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], tokens: int, bfloat16: bool = True
) -> list[Passage]:
    """Each prompt with so many tokens of the model's own answer behind it, read where these are predicted.

    What does not fit the model is left out.

    Args:
        model: As it is.
        tokenizer: Its tokenizer.
        prompts: Whole texts.
        tokens: Of each answer.
        bfloat16: Let it answer in bfloat16 where the device has units for it.
    """
    longest = max_positions(model) or math.inf
    rows = [row for row in (prompt_ids(tokenizer, prompts) if prompts else []) if len(row) + tokens <= longest]
    if not rows:
        return []
    modules = [unwrapped(model)]
    with Halves(modules, input_device(model)).acting(backward=False) if bfloat16 else nullcontext():
        answers = greedy_ids(model, tokenizer, rows, max_new_tokens=tokens)
    whole = [(*prompt, *answer[: tokens - 1]) for prompt, answer in zip(rows, answers, strict=True)]
    return [Passage(row, tuple(range(len(prompt) - 1, len(row)))) for prompt, row in zip(rows, whole, strict=True)]
