"""What an experiment is asked to do."""

from __future__ import annotations

import inspect

import pytest

from peft_prune.cli.experiment import experiment
from peft_prune.experiment import MARKS, RESTRAINTS, Plan, Schedule, Variant


@pytest.mark.parametrize("word", ["none", "clip", "log:1.2", "log:e", "matched:log:1.2", "strengths:none"])
def test_a_variant_is_read_as_its_own_word(word: str) -> None:
    assert Variant.parse(word).word == word


@pytest.mark.parametrize("word", ["merge", "every:10", "compounding:1"])
def test_a_schedule_is_read_as_its_own_word(word: str) -> None:
    assert Schedule.parse(word).word == word


@pytest.mark.parametrize("word", ["every", "every:0", "merge:3", "sometimes", "every:x"])
def test_a_schedule_that_is_none_is_named(word: str) -> None:
    with pytest.raises(ValueError, match=f"schedule: '{word}' is not one of merge, every:N, compounding:N"):
        Schedule.parse(word)


def test_one_sequence_serves_all_restraints_under_merge_and_each_has_its_own_elsewhere() -> None:
    plan = Plan(
        model="m",
        editor="rome",
        marks=(5,),
        variants=tuple(Variant.parse(word) for word in ("none", "log:1.2", "clip", "matched:log:1.2")),
        schedules=(Schedule("merge"), Schedule("every", 5)),
        seeds=2,
    )
    names = [unit.name for unit in plan.units()]
    assert names == [
        *("seed0-merge", "seed0-every-5-log-1.2", "seed0-every-5-clip"),
        *("seed1-merge", "seed1-every-5-log-1.2", "seed1-every-5-clip"),
    ]
    assert [len(unit.variants) for unit in plan.units()] == [4, 1, 1, 4, 1, 1]


def test_seeds_take_their_own_requests_in_their_own_order_each_time_the_same() -> None:
    plan = Plan(model="m", editor="rome", marks=(3, 8))
    assert plan.order(20, 0) == plan.order(20, 0) != plan.order(20, 1)
    assert len(set(plan.order(20, 0))) == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"marks": (10, 5)}, r"edits: \[10, 5\] must be different numbers"),
        ({"marks": ()}, "edits"),
        ({"seeds": 0}, "seeds: 0 must be at least 1"),
        ({"variants": (Variant("clip"), Variant("clip"))}, "variants"),
        ({"fluency_tokens": -1}, "fluency_tokens: -1"),
        (
            {"variants": (Variant("none"),), "schedules": (Schedule("every", 5),)},
            "schedules: under every:5 the variants none have no sequence of their own; add the schedule merge",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(model="m", editor="rome", **values)


def test_a_plan_is_read_back_from_its_facts() -> None:
    words = ("none", "log:1.5", "matched:log:1.2")
    plan = Plan("m", "memit", {"history": False}, (3, 8), tuple(map(Variant.parse, words)), (Schedule("every", 5),), 2)
    assert Plan.from_facts(plan.facts() | {"base": "x"}) == plan


def test_too_few_requests_are_named() -> None:
    with pytest.raises(ValueError, match="edits: 100 is more than the 20 requests"):
        Plan(model="m", editor="rome").order(20, 0)


def test_the_command_starts_from_the_published_restraints_and_marks() -> None:
    defaults = {name: one.default for name, one in inspect.signature(experiment).parameters.items()}
    assert defaults["restraints"].split(",") == list(RESTRAINTS)
    assert defaults["edits"].split(",") == [str(mark) for mark in MARKS]
