"""The prompts of requests about others, which their edits are to leave alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle

from ..requests import EditRequest
from .names import NAMES

TRIES = 20
"""How often another request is drawn for its subject, before a name is taken in its place."""


def requests_about_others(
    requests: Sequence[EditRequest],
    each: int,
    seed: int = 0,
    *,
    alike: Sequence[Sequence[str]] = (),
    of_requests: bool = False,
    edited: Sequence[EditRequest] = (),
    phrasings: Sequence[Sequence[str]] = (),
) -> list[EditRequest]:
    """Each request as it would be asked about so many other subjects, without those that come twice.

    Args:
        requests: The edits; no subject of theirs is taken, but as ``of_requests`` says. Without a subject nothing is
            asked about others.
        each: Subjects for each.
        seed: Of the choice.
        alike: For each request names like its subject, each of which is asked about as well, as many at most.
        of_requests: Take every second subject from another request with another prompt and, where the relation is
            given, another relation: an edit of theirs may be what this prompt asks for. All others are of `NAMES`.
        edited: Further edits whose subjects are not taken.
        phrasings: For each request other prompts of its fact, with ``{}``: every second subject is asked about by one
            of these.
    """
    draw = random.Random(seed)
    subjects = {request.subject for request in (*requests, *edited)}
    names = [name for name in NAMES if name not in subjects]
    asked: dict[str, EditRequest] = {}
    asking = [request for request in requests if request.subject is not None]
    near = dict(zip(requests, alike, strict=True)) if alike else {}
    worded = dict(zip(requests, phrasings, strict=True)) if phrasings else {}
    for request in asking:
        prompts = _in_turn(request.prompt, worded.get(request, ()))
        others = _other_subjects(request, asking, draw)
        chosen = [name for name in near.get(request, ())[:each] if name not in subjects]
        for number in range(each):
            subject = next(others) if of_requests and number % 2 else None
            chosen.append(subject or draw.choice(names))
        for subject in chosen:
            one = _about(request, next(prompts), subject)
            asked.setdefault(one.text, one)
    return list(asked.values())


def _about(request: EditRequest, prompt: str, subject: str) -> EditRequest:
    question = request.question if prompt == request.prompt else None
    return replace(request, prompt=prompt, subject=subject, question=question)


def different_prompts(requests: Sequence[EditRequest], most: int, seed: int = 0) -> list[EditRequest]:
    """The requests with a subject, one for each prompt; so many, drawn by chance, where there are more."""
    found = list({request.prompt: request for request in requests if request.subject is not None}.values())
    return found if len(found) <= most else random.Random(seed).sample(found, most)


def _in_turn(own: str, others: Sequence[str]) -> Iterator[str]:
    """The request's own prompt and one of the others, by turns."""
    return cycle([prompt for other in others for prompt in (own, other)] or [own])


def _other_subjects(request: EditRequest, requests: Sequence[EditRequest], draw: random.Random) -> Iterator[str | None]:
    """Subjects of requests that ask for something else; None where `TRIES` draws find none."""
    while True:
        drawn = (draw.choice(requests) for _ in range(TRIES))
        yield next((other.subject for other in drawn if not _asks_alike(request, other)), None)


def _asks_alike(one: EditRequest, other: EditRequest) -> bool:
    if one.prompt == other.prompt or one.subject == other.subject:
        return True
    return one.relation_id is not None and one.relation_id == other.relation_id
