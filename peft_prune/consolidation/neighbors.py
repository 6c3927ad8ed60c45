"""What must stay: the edits' own prompts about other subjects, with what the base says to them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..editors.asking import asks_in_chat, asks_plainly, chat_question
from ..editors.kin import names_alike
from ..editors.others import requests_about_others
from ..models.joining import asked
from ..requests import EditRequest
from .passages import Passage, accepted, answered

ANSWER_TOKENS = 3
"""Of the base's answer, at whose tokens it is retained."""
CHAT_ANSWER_TOKENS = 12
"""The same in chat, where an answer often begins with the question's own words."""


def neighbor_passages(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    each: int,
    seed: int = 0,
    *,
    phrasings: Sequence[Sequence[str]] = (),
    standing: Sequence[EditRequest] = (),
    in_chat: bool = True,
    bfloat16: bool = True,
    progress: bool = False,
) -> list[Passage]:
    """The edits' prompts about others, with the beginning of the base's own answer to each.

    What an edit is asked in chat, half of the others are asked there as well; an edit that is asked in chat alone is
    asked about all of them there. Who cannot be asked so, for the template refuses the name, is left out.

    Of each edit these are about names like its subject, about well-known ones and about other edits' subjects, asked by
    its own prompt and, by turns, by the other ones that it is trained with.

    Args:
        model: A PEFT model; the base answers.
        tokenizer: Its tokenizer.
        requests: The edits.
        each: At most so many names like its subject for each edit, and as many others.
        seed: Of the choice.
        phrasings: For each request the prompts beside its own that it is trained with.
        standing: Further edits that stand: their subjects are no others, since what the base says of them has changed.
        in_chat: Off asks about others plainly alone.
        bfloat16: Let the base answer in bfloat16 where the device has units for it.
        progress: Show a bar while the base finds names.
    """
    if each == 0:
        return []
    with model.disable_adapter():
        alike = names_alike(model, tokenizer, requests, seed, progress=progress)
        others = requests_about_others(
            *(requests, each, seed), alike=alike, of_requests=True, edited=standing, phrasings=phrasings
        )
        plain = [one.text for one in others if asks_plainly(one) or not in_chat]
        spoken = accepted(partial(chat_question, tokenizer), _in_chat(others) if in_chat else [])
        return [
            *answered(model, tokenizer, plain, ANSWER_TOKENS, bfloat16),
            *answered(
                model, tokenizer, [asked(one.text, one.separator) for one in spoken], CHAT_ANSWER_TOKENS, bfloat16
            ),
        ]


def _in_chat(others: Sequence[EditRequest]) -> list[EditRequest]:
    asked_so = [one for one in others if asks_in_chat(one)]
    # two of four, since prompts and kinds of subjects take turns as well
    return [one for number, one in enumerate(asked_so) if number % 4 < 2 or not asks_plainly(one)]
