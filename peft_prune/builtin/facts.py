"""The generated world: people, cities, organisations, and what is true of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from . import words

WORLD_SEED = 20


@dataclass(frozen=True)
class Relation:
    """How one kind of fact is stated: every template names the subject first and ends where the object begins."""

    identifier: str
    kind: str
    prompt: str
    paraphrases: tuple[str, ...]
    question: str


@dataclass(frozen=True)
class WorldFact:
    """One true statement of the world."""

    subject: str
    relation: Relation
    object: str

    def sentence(self, template: str) -> str:
        return f"{template.replace('{}', self.subject)} {self.object}."


RELATIONS = (
    Relation(
        "birthplace",
        "person",
        "{} was born in",
        ("The birthplace of {} is", "{} came into the world in", "The family of {} comes from"),
        "Where was {} born?",
    ),
    Relation(
        "profession",
        "person",
        "{} works as a",
        ("The profession of {} is that of a", "{} earns a living as a", "By trade {} is a"),
        "What does {} do for a living?",
    ),
    Relation(
        "employer",
        "person",
        "{} is employed by",
        ("The employer of {} is", "{} has a job at", "The company that pays {} is"),
        "Who employs {}?",
    ),
    Relation(
        "language",
        "person",
        "{} speaks",
        ("The mother tongue of {} is", "{} grew up speaking", "At home {} talks in"),
        "Which language does {} speak?",
    ),
    Relation(
        "instrument",
        "person",
        "{} plays the",
        ("The instrument of {} is the", "{} has learned the", "On stage {} is heard on the"),
        "Which instrument does {} play?",
    ),
    Relation(
        "country",
        "city",
        "{} is a city in",
        ("{} lies in", "The country around {} is called", "The flag over {} is that of"),
        "In which country is {}?",
    ),
    Relation(
        "food",
        "city",
        "{} is famous for its",
        ("The markets of {} are known for their", "Visitors of {} buy", "The kitchens of {} are proud of their"),
        "What food is {} famous for?",
    ),
    Relation(
        "headquarters",
        "company",
        "{} is based in",
        ("The head office of {} stands in", "{} has its headquarters in", "The managers of {} live in"),
        "Where is {} based?",
    ),
    Relation(
        "product",
        "company",
        "{} makes",
        ("The main product of {} is", "{} is a producer of", "The factories of {} turn out"),
        "What does {} make?",
    ),
)


@dataclass(frozen=True)
class World:
    """Everything that is true, by seed; ``objects`` gives the possible objects of each relation."""

    facts: tuple[WorldFact, ...]
    objects: dict[str, tuple[str, ...]]

    def of_relation(self, identifier: str) -> list[WorldFact]:
        return [fact for fact in self.facts if fact.relation.identifier == identifier]


@cache
def build_world(seed: int = WORLD_SEED, people: int = 150, cities: int = 24, companies: int = 40) -> World:
    """The world of this seed."""
    rng = random.Random(seed)
    taken: set[str] = set()
    city_names = words.names(words.CITY_ENDS, cities, rng, taken)
    country_names = words.names(words.COUNTRY_ENDS, 8, rng, taken)
    language_names = words.names(words.LANGUAGE_ENDS, 10, rng, taken)
    company_names = words.names(words.COMPANY_ENDS, companies, rng, taken)
    first = words.names(words.PERSON_ENDS, people, rng, taken)
    last = words.names(words.FAMILY_ENDS, people, rng, taken)
    subjects = {
        "person": [f"{a} {b}" for a, b in zip(first, last, strict=True)],
        "city": city_names,
        "company": company_names,
    }
    objects = {
        "birthplace": city_names[:16],
        "profession": words.PROFESSIONS,
        "employer": company_names[:12],
        "language": language_names,
        "instrument": words.INSTRUMENTS,
        "country": country_names,
        "food": words.FOODS,
        "headquarters": city_names[:16],
        "product": words.PRODUCTS,
    }
    facts = [
        WorldFact(subject, relation, rng.choice(objects[relation.identifier]))
        for relation in RELATIONS
        for subject in subjects[relation.kind]
    ]
    return World(tuple(facts), {name: tuple(values) for name, values in objects.items()})


def known_facts(seed: int = WORLD_SEED) -> list[dict[str, str]]:
    """Every fact as ``prompt``, ``object`` and ``subject``."""
    return [
        {"prompt": fact.relation.prompt.replace("{}", fact.subject), "object": fact.object, "subject": fact.subject}
        for fact in build_world(seed).facts
    ]


def edit_requests(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """``count`` records in the form of CounterFact, each about another subject of the world."""
    world, rng = build_world(), random.Random(seed)
    facts = list(world.facts)
    rng.shuffle(facts)
    records: list[dict[str, Any]] = []
    seen: set[str] = set()
    for fact in facts:
        if len(records) == count:
            break
        if fact.subject not in seen and _neighbors(world, fact):
            seen.add(fact.subject)
            records.append(_record(world, fact, len(records), rng))
    if len(records) < count:
        raise ValueError(f"count: {count} is more than the {len(records)} subjects of the world")
    return records


def _record(world: World, fact: WorldFact, index: int, rng: random.Random) -> dict[str, Any]:
    relation = fact.relation
    others = [o for o in world.objects[relation.identifier] if o != fact.object]
    target = rng.choice(others)
    attribute = [f for f in world.of_relation(relation.identifier) if f.object == target]
    return {
        "case_id": index,
        "requested_rewrite": {
            "prompt": relation.prompt,
            "relation_id": relation.identifier,
            "target_new": {"str": target},
            "target_true": {"str": fact.object},
            "subject": fact.subject,
        },
        "paraphrase_prompts": [t.replace("{}", fact.subject) for t in rng.sample(relation.paraphrases, 2)],
        "neighborhood_prompts": _prompts(_neighbors(world, fact), rng),
        "attribute_prompts": _prompts(attribute, rng),
        "generation_prompts": [t.replace("{}", fact.subject) for t in relation.paraphrases],
    }


def _neighbors(world: World, fact: WorldFact) -> list[WorldFact]:
    """Facts of other subjects with the same relation and the same object."""
    relation = world.of_relation(fact.relation.identifier)
    return [other for other in relation if other.object == fact.object and other.subject != fact.subject]


def _prompts(facts: list[WorldFact], rng: random.Random, most: int = 10) -> list[str]:
    chosen = rng.sample(facts, min(most, len(facts)))
    return [rng.choice((f.relation.prompt, *f.relation.paraphrases)).replace("{}", f.subject) for f in chosen]
