"""Plain text about the world and the abilities: what the built-in model is trained and measured on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from .abilities import ability_names, training_items
from .facts import WorldFact, build_world

SENTENCES = 6

SHARES = {
    "world": {
        "statements": 8,
        "biography": 4,
        "reasoning": 4,
        "summarization": 3,
        "question_answering": 3,
        "inference": 4,
    },
    "abilities": {
        "statements": 4,
        "biography": 2,
        "reasoning": 2,
        "summarization": 4,
        "question_answering": 1,
        "inference": 8,
    },
    "dialogues": {
        "statements": 4,
        "biography": 2,
        "reasoning": 2,
        "summarization": 10,
        "question_answering": 1,
        "inference": 3,
    },
}
"""How often each kind of text comes in the stages of training."""


def training_texts(seed: int, stage: str = "world") -> Iterator[str]:
    """An endless, deterministic stream of training texts: statements, short lives, and items of the abilities."""
    rng = random.Random(f"training {stage} {seed}")
    items = {name: training_items(name, rng) for name in ability_names()}
    kinds, shares = list(SHARES[stage]), list(SHARES[stage].values())
    while True:
        kind = rng.choices(kinds, shares)[0]
        if kind == "statements":
            yield _statements(rng, build_world().facts)
        elif kind == "biography":
            yield _biography(rng)
        else:
            item = next(items[kind])
            yield f"{item['prompt']} {item['answer']}\n"


def plain_texts(count: int, seed: int = 1) -> list[str]:
    """Ordinary text for this model, for second moments: the world and the abilities, as the training mixes them."""
    return list(islice(training_texts(seed), count))


def held_out_texts(count: int = 100) -> list[str]:
    """Texts for perplexity: statements in combinations and wordings that no training text holds."""
    rng = random.Random("held out")
    return [_statements(rng, build_world().facts) for _ in range(count)]


def _statements(rng: random.Random, facts: tuple[WorldFact, ...]) -> str:
    return " ".join(_sentence(rng, fact) for fact in rng.sample(facts, SENTENCES)) + "\n"


def _biography(rng: random.Random) -> str:
    subject = rng.choice(build_world().facts).subject
    facts = [fact for fact in build_world().facts if fact.subject == subject]
    rng.shuffle(facts)
    return " ".join(_sentence(rng, fact) for fact in facts) + "\n"


def _sentence(rng: random.Random, fact: WorldFact) -> str:
    return fact.sentence(rng.choice((fact.relation.prompt, *fact.relation.paraphrases)))
