"""Other ways to ask for an edit: those of its relation, and those that the model itself finds."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..characters import forbidden_character
from ..models.decoder import unwrapped
from ..models.generation import drawn_texts
from ..models.joining import joined
from ..models.sharing import shared, sharers
from ..moving import moving_bar
from ..requests import EditRequest

ROWS = 3
"""How often the model is asked for each edit."""
REQUESTS_AT_ONCE = 16
WRITTEN_TOKENS = 56
"""Of a row: a list of about five sentences."""
TRIED = 32
"""A model that finds nothing for the first so many requests cannot rephrase and is not asked for the others."""

_ASKED = 'The sentence "{0}" can be said in other words. Here are ten ways to say the same:\n1. {0}\n2.'
_NUMBER = re.compile(r"^\s*\d+[.)]\s*")
_UNFINISHED = tuple("({[\"'“‘.,:;!?")
"""A prompt that ends with one of these asks for no answer."""


def lent_phrasings(requests: Sequence[EditRequest]) -> list[tuple[str, ...]]:
    """For each request the prompts of others of the same ``relation_id`` that differ from its own, sorted.

    A request without a subject lends none and is lent none.
    """
    prompts = defaultdict[str, set[str]](set)
    for request in requests:
        if request.relation_id is not None and request.subject is not None:
            prompts[request.relation_id].add(request.prompt)
    return [
        tuple(sorted(prompts[request.relation_id] - {request.prompt}))
        if request.relation_id is not None and request.subject is not None
        else ()
        for request in requests
    ]


def written_phrasings(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    seed: int = 0,
    *,
    progress: bool = False,
) -> list[tuple[str, ...]]:
    """For each request the prompts that the model as it is finds for its fact, those that it finds oftenest first.

    The model is shown the new fact as a sentence that opens a numbered list of ways to say the same, and goes on with
    the list. A line in which the subject stands once, and the target behind it, is a prompt up to the target. All else
    is left out, so that a model that cannot rephrase gives none; after `TRIED` requests it is asked no further.
    `REQUESTS_AT_ONCE` requests are drawn together, so that what is found for one depends on those beside it.

    Args:
        model: It is left as it was.
        tokenizer: Its tokenizer.
        requests: The edits.
        seed: Of the drawing.
        progress: Show a bar.
    """
    parts = [requests[start : start + REQUESTS_AT_ONCE] for start in range(0, len(requests), REQUESTS_AT_ONCE)]
    first = TRIED // REQUESTS_AT_ONCE
    found: list[tuple[str, ...]] = []
    with moving_bar(total=len(requests), desc="Other phrasings", unit=" edits", disable=not progress) as bar:

        def rephrased(own: Sequence[Sequence[EditRequest]]) -> list[list[tuple[str, ...]]]:
            prompts = []
            for part in own:
                prompts.append(_prompts_of(model, tokenizer, part, seed))
                bar.update(min(len(part) * sharers(unwrapped(model)), len(requests) - bar.n))
            return prompts

        for tried in (parts[:first], parts[first:]):
            if not found or any(found):
                found += chain(*shared(unwrapped(model), "other phrasings", tried, rephrased))
    return found + [()] * (len(requests) - len(found))


def _prompts_of(
    model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], seed: int
) -> list[tuple[str, ...]]:
    rows = _lists(model, tokenizer, [request for request in requests for _ in range(ROWS)], seed)
    found = []
    for index, request in enumerate(requests):
        lines = [line for row in rows[index * ROWS : (index + 1) * ROWS] for line in row.split("\n")]
        prompts = Counter(prompt for line in lines if (prompt := prompt_in(line, request)) is not None)
        found.append(tuple(prompt for prompt, _ in prompts.most_common()))
    return found


def prompt_in(line: str, request: EditRequest) -> str | None:
    """The prompt that a line of such a list holds, with ``{}`` in the subject's place; None where it holds none."""
    line = _NUMBER.sub("", line).strip().strip('"“”')
    if (
        request.subject is None
        or line.count(request.subject) != 1
        or "{" in line
        or "}" in line
        or forbidden_character(line)
    ):
        return None
    before, after = line.split(request.subject)
    place = after.find(request.target_new)
    between = after[:place].rstrip()
    if place < 1 or not between or between.endswith(_UNFINISHED) or not any(map(str.isalpha, before + between)):
        return None
    prompt = f"{before}{{}}{between}"
    return None if prompt == request.prompt else prompt


def _lists(model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], seed: int) -> list[str]:
    sentences = [f"{joined(request.text, request.target_new, request.separator)}." for request in requests]
    return drawn_texts(model, tokenizer, [_ASKED.format(one) for one in sentences], WRITTEN_TOKENS, seed)
