"""What an experiment does: the same sequence of edits under every restraint, looked at at every mark."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..editors import Editor, get_editor
from ..spectral import parse_restraint, restraint_text

RESTRAINTS = ("none", "scale", "clip", "linear", "log:e", "log:2", "log:1.5", "log:1.2")
"""The published forms, and the controls."""

MARKS = (10, 20, 40, 60, 100)


@dataclass(frozen=True)
class Variant:
    """One way to treat the accumulated factors of a sequence.

    * ``log:1.2``, ``clip``, ``none``, …: that restraint;
    * ``matched:log:1.2``: all of ΔW scaled to the spectral norm that ``log:1.2`` leaves it in each layer, the control
      that tells whether the form of F matters or only how much is left;
    * ``strengths:log:1.2``: every edit scaled to its least sufficient strength
      (:func:`~peft_prune.session.calibrate_strengths`), then that restraint.

    Args:
        restraint: Word of the restraint.
        kind: "plain", "matched" or "strengths".
    """

    restraint: str
    kind: str = "plain"

    @property
    def word(self) -> str:
        """The word that `parse` reads as this variant."""
        return self.restraint if self.kind == "plain" else f"{self.kind}:{self.restraint}"

    @classmethod
    def parse(cls, word: str) -> Variant:
        """The variant that a word names.

        Raises:
            ValueError: The word names no restraint.
        """
        kind, separator, rest = word.strip().partition(":")
        if separator and kind in ("matched", "strengths"):
            return cls(restraint_text(parse_restraint(rest)), kind)
        return cls(restraint_text(parse_restraint(word)))


@dataclass(frozen=True)
class Schedule:
    """When the restraint acts during the sequence.

    Args:
        kind: "merge": not at all, so that one sequence serves every restraint. "every": non-compounding, after each
            ``edits`` edits. "compounding": the same on what is already restrained, for comparison. "compensated": on
            what was added since by itself, and what that takes is put back into the next edit.
        edits: Edits between two restraints; 0 for "merge".
    """

    kind: str
    edits: int = 0

    @property
    def word(self) -> str:
        """The word that `parse` reads as this schedule."""
        return self.kind if self.kind == "merge" else f"{self.kind}:{self.edits}"

    @classmethod
    def parse(cls, word: str) -> Schedule:
        """The schedule that a word such as ``"merge"`` or ``"every:10"`` names.

        Raises:
            ValueError: It names none.
        """
        kind, _, count = word.strip().partition(":")
        if kind == "merge" and not count:
            return cls("merge")
        if kind in ("every", "compounding", "compensated") and count.isdigit() and int(count) > 0:
            return cls(kind, int(count))
        raise ValueError(f"schedule: {word!r} is not one of merge, every:N, compounding:N, compensated:N with N from 1")


@dataclass(frozen=True)
class Unit:
    """One sequence of edits: a seed under a schedule, and outside ``merge`` one variant.

    Args:
        seed: Which order of the requests.
        schedule: When the restraint acts.
        variants: What is looked at at every mark.
    """

    seed: int
    schedule: Schedule
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        """A name for files and tables, such as ``seed0-every-10-log-1.2``."""
        parts = [f"seed{self.seed}", self.schedule.word]
        if self.schedule.kind != "merge":
            parts.append(self.variants[0].word)
        return "-".join(parts).replace(":", "-")


@dataclass(frozen=True)
class Plan:
    """An experiment as it is asked for.

    Args:
        model: Name of the model, for the tables.
        editor: Name of the editor.
        hyperparameters: Its values that differ from those that fit the model.
        marks: Numbers of edits at which everything is measured, ascending.
        variants: See `Variant`.
        schedules: See `Schedule`.
        seeds: How many orders of the requests; order 0 is as good as any other.
        batch_size: Edits that are computed together.
        strength_margin: Probability that calibrated strengths leave every target.
        fluency_tokens: Tokens generated for a text whose n-gram entropy is taken; 0 leaves fluency out.
        published: Edit as published: the values of `Editor.published`, its stopping rule, and one try for each edit.

    Raises:
        ValueError: A value is not accepted.
    """

    model: str
    editor: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    marks: tuple[int, ...] = MARKS
    variants: tuple[Variant, ...] = tuple(Variant(word) for word in RESTRAINTS)
    schedules: tuple[Schedule, ...] = (Schedule("merge"),)
    seeds: int = 1
    batch_size: int = 1
    strength_margin: float = 0.8
    fluency_tokens: int = 0
    published: bool = False

    def __post_init__(self) -> None:
        if not self.marks or list(self.marks) != sorted(set(self.marks)) or self.marks[0] < 1:
            raise ValueError(f"edits: {list(self.marks)} must be different numbers from 1 in ascending order")
        for name in ("seeds", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("variants", "schedules"):
            words = [one.word for one in getattr(self, name)]
            if not words or len(set(words)) != len(words):
                raise ValueError(f"{name}: {words} must be at least one, each once")
        if not any(True for _ in self.units()):
            schedules, variants = (", ".join(one.word for one in own) for own in (self.schedules, self.variants))
            raise ValueError(
                f"schedules: under {schedules} the variants {variants} have no sequence of their own; add the schedule "
                "merge, or another restraint"
            )
        if self.fluency_tokens < 0:
            raise ValueError(f"fluency_tokens: {self.fluency_tokens} must be at least 0")

    def get_editor(self, model: Any = None) -> Editor:
        """The editor, with values that fit ``model`` or those that are published for it.

        Raises:
            ValueError: It or a hyperparameter is unknown.
        """
        return get_editor(self.editor, model=model, published=self.published, **self.hyperparameters)

    def units(self) -> Iterator[Unit]:
        """Every sequence of edits.

        An unrestrained one under another schedule is that of ``merge``, so it is not edited again there,
        nor are the controls, which are defined on one common sum.
        """
        for seed in range(self.seeds):
            for schedule in self.schedules:
                if schedule.kind == "merge":
                    yield Unit(seed, schedule, self.variants)
                    continue
                for variant in self.variants:
                    if variant.kind == "plain" and variant.restraint != "none":
                        yield Unit(seed, schedule, (variant,))

    def order(self, count: int, seed: int) -> list[int]:
        """Which of ``count`` requests are edited under one seed, a random choice in random order.

        Raises:
            ValueError: There are fewer than the last mark says.
        """
        if count < self.marks[-1]:
            raise ValueError(f"edits: {self.marks[-1]} is more than the {count} requests")
        return random.Random(seed).sample(range(count), self.marks[-1])

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Plan:
        """The plan that `facts` describes; what else the mapping holds is left alone."""
        values = {one.name: facts[one.name] for one in fields(cls) if one.name in facts}
        return cls(
            **values
            | {
                "marks": tuple(facts["marks"]),
                "variants": tuple(Variant.parse(word) for word in facts["variants"]),
                "schedules": tuple(Schedule.parse(word) for word in facts["schedules"]),
            }
        )

    def facts(self) -> dict[str, Any]:
        """Everything that decides the figures, ready for JSON."""
        values = asdict(self)
        return values | {
            "marks": list(self.marks),
            "variants": [variant.word for variant in self.variants],
            "schedules": [schedule.word for schedule in self.schedules],
        }
