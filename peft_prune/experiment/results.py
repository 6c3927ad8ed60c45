"""What the measurements of an experiment amount to: figures with intervals, as rows of one tidy table."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingPackageError
from ..evaluation import Mean, Proportion, kind_of
from ..evaluation.bootstrap import GAP, SHARE, Draws, average, perplexity, share
from ..evaluation.scores import SCORED, score_draws
from ..folders import whole_file
from .plan import Plan, Unit
from .store import Measured, Outcomes, Store, stored_facts

EDITING = (
    *(kind + form for form in ("", "_greedy") for kind in SCORED),
    "portability_greedy",
    *(f"{kind}_chat" for kind in SCORED),
)
LAYER_FIGURES = (
    "condition_number",
    "condition_number_base",
    "growth",
    "sigma_max_base",
    "delta_spectral_norm",
    "delta_frobenius_norm",
    "perturbation_bound",
    "output_perturbation",
    "energy_top",
    "energy_bottom",
    "rank",
)
COLUMNS = (
    *("model", "editor", "seed", "schedule", "restraint", "edits", "moment", "figure", "quantity", "layer"),
    *("value", "n", "low", "high"),
)


def figure_draws(outcomes: Outcomes) -> dict[str, Draws]:
    """Every figure of one model by name, with ``score``, ``score_greedy`` and ``abilities``, their mean.

    Of a task with several metrics (ROUGE-1, -2, -L) the last one counts for the mean.
    """
    found: dict[str, Draws | None] = {}
    for kind, own in outcomes.items():
        if kind == "requests":
            continue
        if kind == "perplexity":
            found[kind] = Draws.of(own, perplexity)
        else:
            found[kind] = Draws.of([[sum(one), len(one)] for one in own if one], share)
    for form in ("", "_greedy"):
        found[f"score{form}"] = score_draws(outcomes, form)
    tasks = {kind.split("/")[0]: draws for kind, draws in found.items() if "/" in kind}
    found["abilities"] = average(list(tasks.values())) if tasks else None
    return {kind: draws for kind, draws in found.items() if draws is not None}


@dataclass(frozen=True)
class Point:
    """One variant at one mark of one sequence.

    Args:
        unit: The sequence.
        restraint: Word of the variant.
        edits: The mark.
        outcomes: See `measure`.
        figures: By name.
        base: The same of the base model on the same requests, items and texts.
        layers: Figures of the layers.
    """

    unit: Unit
    restraint: str
    edits: int
    outcomes: Outcomes
    figures: dict[str, Draws]
    base: dict[str, Draws]
    layers: dict[str, dict[str, float]]

    def largest(self, figure: str) -> float:
        """The largest value of a layer figure over the layers; NaN where none is known."""
        values = [own[figure] for own in self.layers.values() if own.get(figure) is not None]
        return max(values, default=math.nan)

    def loss(self, figure: str) -> Draws:
        """By how much the base is better in this figure."""
        base, own = self.base[figure], self.figures[figure]
        return base.minus(own) if kind_of(figure).higher_is_better else own.minus(base)


class Results:
    """Everything an experiment has measured.

    Args:
        plan: The experiment's plan.
        folder: Its folder.
        facts: What decides its figures; those of a folder that was begun with others are refused.

    Raises:
        ValueError: Nothing has been measured there, or by another experiment.
    """

    def __init__(self, plan: Plan, folder: Path, facts: Mapping[str, Any]) -> None:
        self.plan, self.folder, self.facts = plan, folder, facts
        units = {unit.name: unit for unit in plan.units()}
        with Store(folder / "measurements.sqlite", facts) as store:
            base = store.base()
            if "requests" not in base:
                raise ValueError(f"{folder}: nothing has been measured there yet")
            self._places = {int(index): place for place, (index,) in enumerate(base["requests"])}
            self.base_outcomes = base
            self.points = [self._point(units[one.unit], one) for one in store.measured()]
            self.immediate = {name: store.immediate(name) for name in units}
            self.spectra = list(store.spectra())
        self.units = units

    @classmethod
    def load(cls, folder: Path) -> Results:
        """What an experiment of another time has measured, by its folder alone.

        Raises:
            ValueError: The folder holds no experiment, or one that is being written.
        """
        path = folder / "measurements.sqlite"
        if not path.is_file() or path.stat().st_size == 0:
            raise ValueError(f"against: {folder} holds no experiment")
        try:
            facts = stored_facts(path)
            return cls(Plan.from_facts(facts), folder, facts)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, ValueError) else "what it says of itself is damaged"
            raise ValueError(f"against: {folder} holds no experiment that can be read: {reason}") from None

    def _point(self, unit: Unit, one: Measured) -> Point:
        chosen = [self._places[int(index)] for (index,) in one.outcomes["requests"]]
        base = {kind: self._on_same(kind, own, one.outcomes, chosen) for kind, own in self.base_outcomes.items()}
        figures = figure_draws(one.outcomes)
        return Point(unit, one.variant, one.mark, one.outcomes, figures, figure_draws(base), one.layers)

    def _on_same(self, kind: str, own: list[list[float]], edited: Outcomes, chosen: Sequence[int]) -> list[list[float]]:
        of_requests = kind in EDITING or kind in ("fluency", "requests")
        return [own[place] for place in chosen] if of_requests else own

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each figure of each variant at each mark of each sequence; `COLUMNS`."""
        for kind, draws in figure_draws(self.base_outcomes).items():
            place = {"schedule": "", "restraint": "", "edits": 0, "moment": "before", "figure": kind, "seed": None}
            yield self._row(place, "value", stated(kind, self.base_outcomes.get(kind), draws))
        for point in self.points:
            place = {"seed": point.unit.seed, "schedule": point.unit.schedule.word, "restraint": point.restraint}
            place |= {"edits": point.edits, "moment": "final"}
            for kind, draws in point.figures.items():
                yield self._row(place | {"figure": kind}, "value", stated(kind, point.outcomes.get(kind), draws))
                if kind in point.base:
                    gap = draws.minus(point.base[kind]).mean(bounds_of(kind, GAP))
                    yield self._row(place | {"figure": kind}, "difference to base", gap)
            for layer, own in point.layers.items():
                for figure in LAYER_FIGURES:
                    row = place | {"figure": figure, "layer": layer}
                    yield self._row(row, "value", Mean(own.get(figure), 0, None, None))
        for name, unit in self.units.items():
            yield from self._immediate_rows(unit, self.immediate[name])

    def _immediate_rows(self, unit: Unit, made: Sequence[Outcomes]) -> Iterator[dict[str, Any]]:
        restraint = "none" if unit.schedule.kind == "merge" else unit.variants[0].word
        place = {"seed": unit.seed, "schedule": unit.schedule.word, "restraint": restraint, "moment": "immediate"}
        for mark in self.plan.marks:
            if mark > len(made):
                continue
            outcomes = immediate_outcomes(made[:mark])
            for kind, draws in figure_draws(outcomes).items():
                row = place | {"edits": mark, "figure": kind}
                yield self._row(row, "value", stated(kind, outcomes.get(kind), draws))

    def _row(self, place: Mapping[str, Any], quantity: str, figure: Mean | Proportion) -> dict[str, Any]:
        known = {"model": self.plan.model, "editor": self.plan.editor, "layer": "", "quantity": quantity}
        numbers = {"value": figure.value, "n": figure.n or None, "low": figure.low, "high": figure.high}
        row = known | dict(place) | numbers
        return {name: row[name] for name in COLUMNS}


def immediate_outcomes(made: Sequence[Outcomes]) -> Outcomes:
    """Outcomes of several edits, each measured right after it was made, by the figures that all of them have."""
    kinds = [kind for kind in made[0] if all(kind in one for one in made)]
    return {kind: [one[kind][0] for one in made] for kind in kinds}


def stated(kind: str, outcomes: Sequence[Sequence[float]] | None, draws: Draws) -> Mean | Proportion:
    """A figure with its n and interval: Wilson's where it counts successes, else the bootstrap's over its units."""
    if outcomes is not None and kind_of(kind).aggregation == "share":
        return Proportion.of_clusters(outcomes)
    return draws.mean(bounds_of(kind, SHARE))


def bounds_of(kind: str, bounds: tuple[float, float]) -> tuple[float, float] | None:
    """``bounds`` where they bound a figure of this kind, else None."""
    return None if kind_of(kind).bounds is None else bounds


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as Parquet or CSV, whichever the file's ending says, whole or not at all.

    Raises:
        ValueError: The ending is neither.
        MissingPackageError: The ending is ``.parquet`` and pandas or pyarrow is not installed.
    """
    require_table(path.suffix.removeprefix("."))
    with whole_file(path) as part:
        if path.suffix == ".parquet":
            import pandas

            pandas.DataFrame(list(rows), columns=list(rows[0])).to_parquet(part, index=False)
            return
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: _in_csv(value) for name, value in row.items()} for row in rows)


def require_table(form: str) -> None:
    """Raise what `write_table` would raise for a table of this form, before anything is measured."""
    if form not in ("parquet", "csv"):
        raise ValueError(f"table: {form!r} is not one of parquet, csv")
    if form == "parquet" and not all(importlib.util.find_spec(name) for name in ("pandas", "pyarrow")):
        raise MissingPackageError(
            "pandas and pyarrow are not installed; pip install 'peft-prune[evaluation]', or take csv"
        )


def _in_csv(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
