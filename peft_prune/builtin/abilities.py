"""Miniature forms of the four general abilities that the PRUNE paper measures, as plain text.

Every item is a prompt that ends where the answer begins; the answer ends with the line. Whether an item is held out is
decided by a hash of its content, so that no training text holds a test item whatever the order of generation.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator

from . import words
from .facts import WorldFact, build_world

HELD_OUT_SHARE = 8
"""One item in so many is held out."""

Item = dict[str, str]


def ability_names() -> list[str]:
    """The names of the abilities, as the evaluation knows them."""
    return list(_GENERATORS)


def ability_items(name: str, count: int, *, held_out: bool, seed: int = 0) -> list[Item]:
    """``count`` different items with ``prompt`` and ``answer``, held out from training or part of it.

    Raises:
        ValueError: There is no ability of that name, or it has fewer items.
    """
    if name not in _GENERATORS:
        raise ValueError(f"name: {name!r} is not one of {', '.join(_GENERATORS)}")
    items: dict[str, Item] = {}
    attempts = 0
    generate, rng = _GENERATORS[name], random.Random(f"{name} {seed}")
    while len(items) < count:
        attempts += 1
        if attempts > 200 * count + 10_000:
            raise ValueError(f"count: {count} is more than the {len(items)} items of {name}")
        item = generate(rng)
        if is_held_out(item) == held_out:
            items.setdefault(item["prompt"], item)
    return list(items.values())


def training_items(name: str, rng: random.Random) -> Iterator[Item]:
    """An endless stream of items that are not held out."""
    while True:
        item = _GENERATORS[name](rng)
        if not is_held_out(item):
            yield item


def is_held_out(item: Item) -> bool:
    """Whether training must not see this item."""
    return zlib.crc32(item["key"].encode()) % HELD_OUT_SHARE == 0


def _reasoning(rng: random.Random) -> Item:
    name, thing = rng.choice(words.SHORT_NAMES), rng.choice(words.THINGS)
    start, more = rng.randint(1, 10), rng.randint(1, 10)
    less = rng.randint(1, min(9, start + more - 1))
    gains = rng.choice((f"buys {more} more", f"finds {more} more", f"gets {more} more"))
    loses = rng.choice((f"gives away {less}", f"loses {less}", f"sells {less}"))
    if rng.random() < 0.5:
        story, steps = f"{gains}", f"{start} + {more} = {start + more}."
        result, key = start + more, f"{start}+{more}"
    else:
        story = f"{gains} and {loses}"
        result, key = start + more - less, f"{start}+{more}-{less}"
        steps = f"{start} + {more} = {start + more}. {start + more} - {less} = {result}."
    return {
        "prompt": f"Problem: {name} has {start} {thing}. {name} {story}. How many {thing} does {name} have?\nSolution:",
        "answer": f"{steps} #### {result}",
        "key": key,
    }


def _summarization(rng: random.Random) -> Item:
    one, two = rng.sample(words.SHORT_NAMES, 2)
    place, time = rng.choice(words.PLACES), rng.choice(words.TIMES)
    activity, day = rng.choice(words.ACTIVITIES), rng.choice(words.DAYS)
    dialogues = (
        f"{one}: Shall we {activity} on {day}?\n{two}: Good idea. Where?\n"
        f"{one}: At the {place}.\n{two}: See you at {time}.",
        f"{one}: Are you free on {day}?\n{two}: Yes, after {rng.choice(words.TIMES)}.\n"
        f"{one}: Let us {activity} at the {place}.\n{two}: Fine, at {time}.",
        f"{one}: I am at the {place} on {day}.\n{two}: Me too. Shall we {activity}?\n{one}: Yes, at {time}.",
    )
    dialogue = rng.choice(dialogues)
    return {
        "prompt": f"Dialogue:\n{dialogue}\nSummary:",
        "answer": f"{one} and {two} will {activity} at the {place} on {day} at {time}.",
        "key": f"{one} {two} {place} {time} {activity} {day}",
    }


def _question(rng: random.Random) -> Item:
    return question_about(rng.choice(build_world().facts))


def question_about(fact: WorldFact) -> Item:
    """The fact as a question; whether the question is held out, the statement of the fact is always in the training."""
    return {
        "prompt": f"Question: {fact.relation.question.replace('{}', fact.subject)}\nAnswer:",
        "answer": fact.object,
        "key": f"{fact.subject} {fact.relation.identifier}",
    }


def _inference(rng: random.Random) -> Item:
    said, claimed = rng.choice(list(_IMPLIES)), rng.choice(list(_IMPLIES))
    rest = f"{rng.choice(words.THINGS)} of {rng.choice(words.SHORT_NAMES)} are {rng.choice(words.COLOURS)}."
    return {
        "prompt": f"Premise: {said} {rest}\nHypothesis: {claimed} {rest}\nLabel:",
        "answer": "entailment" if claimed in _IMPLIES[said] else "not_entailment",
        "key": f"{said} {claimed} {rest}",
    }


_IMPLIES = {"All": ("All", "Most", "Some"), "Most": ("Most", "Some"), "Some": ("Some",), "No": ("No",)}
"""What each quantifier implies of the same things, where there are some."""

_GENERATORS: dict[str, Callable[[random.Random], Item]] = {
    "reasoning": _reasoning,
    "summarization": _summarization,
    "question_answering": _question,
    "inference": _inference,
}
