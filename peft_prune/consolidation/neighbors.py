"""What must stay: the edits' own prompts about other subjects, with what the base says to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..editors.kin import names_alike
from ..editors.others import prompts_about_others
from ..models.generation import greedy_ids
from ..models.tokenization import prompt_ids
from ..requests import EditRequest
from .passages import Passage

ANSWER_TOKENS = 3
"""Of the base's answer, at whose tokens it is retained."""


def neighbor_passages(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    each: int,
    seed: int = 0,
    *,
    phrasings: Sequence[Sequence[str]] = (),
    progress: bool = False,
) -> list[Passage]:
    """The edits' prompts about others, with the beginning of the base's own answer to each.

    Of each edit these are about names like its subject, about well-known ones and about other edits' subjects, asked by
    its own prompt and, by turns, by the other ones that it is trained with.

    Args:
        model: A PEFT model; the base answers.
        tokenizer: Its tokenizer.
        requests: The edits.
        each: At most so many names like its subject for each edit, and as many others.
        seed: Of the choice.
        phrasings: For each request the prompts beside its own that it is trained with.
        progress: Show a bar while the base finds names.
    """
    if each == 0:
        return []
    with model.disable_adapter():
        alike = names_alike(model, tokenizer, requests, seed, progress=progress)
        asked = prompts_about_others(requests, each, seed, alike=alike, of_requests=True, phrasings=phrasings)
        if not asked:
            return []
        prompts = prompt_ids(tokenizer, asked)
        answers = greedy_ids(model, tokenizer, prompts, max_new_tokens=ANSWER_TOKENS)
    rows = [(*prompt, *answer[: ANSWER_TOKENS - 1]) for prompt, answer in zip(prompts, answers, strict=True)]
    return [Passage(row, tuple(range(len(prompt) - 1, len(row)))) for prompt, row in zip(prompts, rows, strict=True)]
