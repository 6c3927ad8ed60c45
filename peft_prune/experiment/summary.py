"""What an experiment found, in tables with intervals: means over seeds, comparisons, and what predicts the loss."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..evaluation.bootstrap import GAP, SHARE, Draws, over_seeds
from .correlation import Correlation, correlation
from .results import Point, Results, bounds_of, figure_draws, immediate_outcomes
from .store import said, same_fact

SHOWN = (
    *("efficacy", "generalization", "locality", "score", "efficacy_greedy", "generalization_greedy"),
    *(
        "locality_greedy",
        "score_greedy",
        "efficacy_chat",
        "generalization_chat",
        "locality_chat",
        "portability_greedy",
        "fluency",
        "abilities",
        "recall",
        "perplexity",
    ),
)
COMPARED = ("efficacy_greedy", "score", "score_greedy", "abilities", "recall", "perplexity")
PREDICTORS = {
    "κ(W₀+ΔW) / κ(W₀)": lambda point: point.largest("growth"),
    "‖ΔW‖₂ / σmax(W₀)": lambda point: _relative(point, "delta_spectral_norm"),
    "‖ΔW‖_F / σmax(W₀)": lambda point: _relative(point, "delta_frobenius_norm"),
    "perturbation bound": lambda point: point.largest("perturbation_bound"),
    "output perturbation": lambda point: point.largest("output_perturbation"),
}
"""What may foretell a loss of ability: the largest over the layers."""


SHARED = ("abilities", "recall", "perplexity")
"""Figures over the same items for every seed, so that more seeds make no more of them."""


def summarize(results: Results, against: Sequence[Results] = ()) -> dict[str, Any]:
    """Everything that can be said of an experiment, ready for JSON; see `markdown` for the same as text.

    Args:
        results: Of the experiment.
        against: Of others on the same model, requests and material, to compare with.

    Raises:
        ValueError: One of ``against`` cannot be compared.
    """
    last = results.plan.marks[-1]
    return {
        "plan": results.plan.facts(),
        "base": {kind: _stated(kind, draws) for kind, draws in figure_draws(results.base_outcomes).items()},
        "final": [_line(group) for group in _groups(results, last)],
        "immediate": _immediate(results, last),
        "comparisons": comparisons(results, last)
        + [one for other in against for one in comparisons_against(results, other)],
        "correlations": [vars(one) for one in correlations(results.points)],
    }


def comparisons(results: Results, mark: int) -> list[dict[str, Any]]:
    """Pairs of variants that differ in one thing, over all seeds: the first minus the second, paired."""
    groups = {(group[0].unit.schedule.word, group[0].restraint): group for group in _groups(results, mark)}
    pairs = []
    for schedule, word in groups:
        kind, _, rest = word.partition(":")
        if kind == "matched" and (schedule, rest) in groups:
            pairs.append((f"{rest} − all of ΔW scaled to the same norm", (schedule, rest), (schedule, word)))
        if kind == "strengths" and (schedule, rest) in groups:
            pairs.append((f"{rest} with − without per-edit strengths", (schedule, word), (schedule, rest)))
        if schedule != "merge" and ("merge", word) in groups:
            pairs.append((f"{word}: {schedule} − merge", (schedule, word), ("merge", word)))
        if schedule == "merge" and word not in ("none",) and kind not in ("matched", "strengths"):
            pairs.append((f"{word} − none", (schedule, word), (schedule, "none")))
    found = []
    for label, one, other in pairs:
        if other in groups:
            found.append({"pair": label, "figures": _compared(groups[one], groups[other])})
    return found


def comparisons_against(results: Results, other: Results) -> list[dict[str, Any]]:
    """Every restraint and schedule that two experiments share, over all seeds: the first minus the other, paired.

    Raises:
        ValueError: They were not made on the same model, requests, facts, texts, abilities and seeds.
    """
    require_comparable(results.facts, other.facts)
    common = [mark for mark in results.plan.marks if mark in other.plan.marks]
    if not common:
        raise ValueError(f"against: no mark of {list(other.plan.marks)} is one of {list(results.plan.marks)}")
    mark = common[-1]
    theirs_by_word = {(g[0].unit.schedule.word, g[0].restraint): g for g in _groups(other, mark)}
    found = []
    for group in _groups(results, mark):
        key = (group[0].unit.schedule.word, group[0].restraint)
        if key in theirs_by_word:
            _require_same_edits(group, theirs_by_word[key])
            pair = f"{_label(results, other)}: {key[1]} ({key[0]}, {mark} edits)"
            found.append({"pair": pair, "figures": _compared(group, theirs_by_word[key])})
    return found


def require_comparable(facts: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise ValueError where two experiments are not of the same model, requests, material and seeds."""
    for name in ("model", "base", "requests", "requests_digest", "material", "material_digest", "seeds"):
        # JSON has no tuples, so that what was read compares with what was given
        own, other = (json.loads(json.dumps(one.get(name))) for one in (facts, theirs))
        if not same_fact(name, own, other):
            raise ValueError(f"against: that experiment has {name} = {said(name, other)}, this one {said(name, own)}")


def _require_same_edits(one: Sequence[Point], other: Sequence[Point]) -> None:
    chosen = [{point.unit.seed: point.outcomes["requests"] for point in group} for group in (one, other)]
    if chosen[0] != chosen[1]:
        raise ValueError("against: that experiment edited other requests, or in another order")


def _label(results: Results, other: Results) -> str:
    """What two plans differ in, the first minus the other."""
    own, theirs = results.plan, other.plan
    if own.editor != theirs.editor:
        return f"{own.editor} − {theirs.editor}"
    ours, others = (
        json.loads(json.dumps(plan.hyperparameters | ({"published": True} if plan.published else {})))
        for plan in (own, theirs)
    )
    names = [name for name in {**ours, **others} if ours.get(name) != others.get(name)]
    said = [", ".join(f"{name}={one.get(name, 'default')}" for name in names) for one in (ours, others)]
    return f"{own.editor} with {said[0]} − with {said[1]}" if names else f"{own.editor} − the same in {other.folder}"


def correlations(points: Sequence[Point]) -> list[Correlation]:
    """Spearman's ρ between every predictor and the loss of abilities, of recall, and of perplexity."""
    known = [kind for kind in SHARED if points and all(kind in point.figures for point in points)]
    return [
        correlation(points, name, predictor, kind, partial(_loss, kind))
        for kind in known
        for name, predictor in PREDICTORS.items()
        if not any(math.isnan(predictor(point)) for point in points)
    ]


def _loss(kind: str, point: Point) -> float:
    return point.loss(kind).value


def _groups(results: Results, mark: int) -> list[list[Point]]:
    """The points of one mark, those of all seeds together."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in results.points:
        if point.edits == mark:
            found.setdefault((point.unit.schedule.word, point.restraint), []).append(point)
    return list(found.values())


def _line(group: Sequence[Point]) -> dict[str, Any]:
    figures = {
        kind: _stated(kind, over_seeds([point.figures[kind] for point in group], same_units=_is_shared(kind)))
        for kind in (*SHOWN, *sorted({k for k in group[0].figures if "/" in k}))
        if all(kind in point.figures for point in group)
    }
    layers = {name: [predictor(point) for point in group] for name, predictor in PREDICTORS.items()}
    kappa = {"condition_number": [point.largest("condition_number") for point in group]}
    return {
        "schedule": group[0].unit.schedule.word,
        "restraint": group[0].restraint,
        "seeds": len(group),
        "figures": figures,
        "layers": {name: _spread(values) for name, values in (kappa | layers).items()},
    }


def _is_shared(kind: str) -> bool:
    return kind in SHARED or "/" in kind


def _stated(kind: str, draws: Draws) -> dict[str, Any]:
    return draws.mean(bounds_of(kind, SHARE)).to_json()


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if any(math.isnan(value) for value in values):
        return None
    return {"value": sum(values) / len(values), "least": min(values), "largest": max(values)}


def _compared(one: Sequence[Point], other: Sequence[Point]) -> dict[str, Any]:
    pairs = [(a, b) for a in one for b in other if a.unit.seed == b.unit.seed]
    found = {}
    for kind in COMPARED:
        if pairs and all(kind in a.figures and kind in b.figures for a, b in pairs):
            gaps = [a.figures[kind].minus(b.figures[kind]) for a, b in pairs]
            found[kind] = over_seeds(gaps, same_units=_is_shared(kind)).mean(bounds_of(kind, GAP)).to_json()
    return found


def _immediate(results: Results, mark: int) -> list[dict[str, Any]]:
    by_course: dict[tuple[str, str], list[dict[str, Draws]]] = {}
    for name, unit in results.units.items():
        made = results.immediate[name]
        if len(made) >= mark:
            outcomes = immediate_outcomes(made[:mark])
            word = "none" if unit.schedule.kind == "merge" else unit.variants[0].word
            by_course.setdefault((unit.schedule.word, word), []).append(figure_draws(outcomes))
    return [
        {
            "schedule": schedule,
            "restraint": word,
            "figures": {
                kind: _stated(kind, over_seeds([one[kind] for one in parts]))
                for kind in parts[0]
                if all(kind in one for one in parts)
            },
        }
        for (schedule, word), parts in by_course.items()
    ]


def _relative(point: Point, figure: str) -> float:
    return max((own[figure] / own["sigma_max_base"] for own in point.layers.values()), default=math.nan)
