"""What must stay: the edits' own prompts about other subjects, with what the base says to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..editors.names import NAMES
from ..models.generation import greedy_ids
from ..models.tokenization import prompt_ids
from ..requests import EditRequest
from .passages import Passage

ANSWER_TOKENS = 3
"""Of the base's answer, at whose tokens it is retained."""


def neighbor_passages(
    model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], each: int, seed: int = 0
) -> list[Passage]:
    """The prompt of each request about so many other subjects, with the beginning of the base's own answer.

    Every second subject is one of `NAMES`, the others are of other requests that have another prompt and, where the
    relation is given, another relation: an edit of theirs may be what this prompt asks for. Requests without a subject
    have no neighbors.

    Args:
        model: A PEFT model; the base answers.
        tokenizer: Its tokenizer.
        requests: The edits.
        each: Subjects for each.
        seed: Of the choice.
    """
    draw = random.Random(seed)
    edited = {request.subject for request in requests}
    names = [name for name in NAMES if name not in edited]
    asked: dict[str, None] = {}
    for request in requests:
        if request.subject is None:
            continue  # nothing in it could be another's
        others = [other.subject for other in requests if other.subject is not None and not _asks_alike(request, other)]
        for number in range(each):
            subject = draw.choice(others if others and number % 2 else names)
            asked[request.prompt.replace("{}", subject)] = None
    if not asked:
        return []
    prompts = prompt_ids(tokenizer, list(asked))
    with model.disable_adapter():
        answers = greedy_ids(model, tokenizer, prompts, max_new_tokens=ANSWER_TOKENS)
    rows = [(*prompt, *answer[: ANSWER_TOKENS - 1]) for prompt, answer in zip(prompts, answers, strict=True)]
    return [Passage(row, tuple(range(len(prompt) - 1, len(row)))) for prompt, row in zip(prompts, rows, strict=True)]


def _asks_alike(one: EditRequest, other: EditRequest) -> bool:
    if one.prompt == other.prompt or one.subject == other.subject:
        return True
    return one.relation_id is not None and one.relation_id == other.relation_id
