"""What an experiment found, in tables with intervals: means over seeds, comparisons, and what predicts the loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..evaluation.draws import GAP, SHARE, Draws, over_seeds
from .results import Point, Results, bounds_of, figure_draws, immediate_outcomes

SHOWN = (
    *("efficacy", "generalization", "locality", "score", "efficacy_greedy", "generalization_greedy"),
    *("locality_greedy", "score_greedy", "portability_greedy", "fluency", "abilities", "recall", "perplexity"),
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


SHARED = ("recall", "perplexity", "abilities")
"""Figures over the same items for every seed, so that more seeds make no more of them."""

LEAST_SEEDS = 3
LEAST_VARIANTS = 4


@dataclass(frozen=True)
class Correlation:
    """A rank correlation over points of an experiment, within each sequence's seed.

    The points of one seed share their edits, so they are one unit: ρ is taken within each seed, averaged as Fisher's z,
    and its interval is Student's over the seeds.

    Args:
        predictor: Name of the figure of the layers.
        loss: Name of the ability whose loss against the base it may predict.
        rho: Mean Spearman's ρ over the seeds, over all variants and marks; None where one of the two does not vary.
        low: Lower end of the 95 % interval; None with fewer than `LEAST_SEEDS` seeds.
        high: Upper end.
        within: The same of the mean ρ over the variants at single marks, which leaves the number of edits out of play;
            None with fewer than `LEAST_VARIANTS` variants.
        within_low: Lower end of its interval.
        within_high: Upper end.
        n: Number of points.
        seeds: Number of seeds.
    """

    predictor: str
    loss: str
    rho: float | None
    low: float | None
    high: float | None
    within: float | None
    within_low: float | None
    within_high: float | None
    n: int
    seeds: int


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
        own, other = (json.dumps(one.get(name)) for one in (facts, theirs))
        if own != other:
            raise ValueError(f"against: that experiment has {name} = {other}, this one {own}")


def _require_same_edits(one: Sequence[Point], other: Sequence[Point]) -> None:
    chosen = [{point.unit.seed: point.outcomes["requests"] for point in group} for group in (one, other)]
    if chosen[0] != chosen[1]:
        raise ValueError("against: that experiment edited other requests, or in another order")


def _label(results: Results, other: Results) -> str:
    """What two plans differ in, the first minus the other."""
    own, theirs = results.plan, other.plan
    if own.editor != theirs.editor:
        return f"{own.editor} − {theirs.editor}"
    ours, others = (json.loads(json.dumps(plan.hyperparameters)) for plan in (own, theirs))
    names = [name for name in {**ours, **others} if ours.get(name) != others.get(name)]
    said = [", ".join(f"{name}={one.get(name, 'default')}" for name in names) for one in (ours, others)]
    return f"{own.editor} with {said[0]} − with {said[1]}" if names else f"{own.editor} − the same"


def correlations(points: Sequence[Point]) -> list[Correlation]:
    """Spearman's ρ between every predictor and the loss of abilities, of recall, and of text (log-perplexity)."""
    losses: dict[str, Callable[[Point], float]] = {
        kind: (lambda point, kind=kind: point.loss(kind).value)  # type: ignore[misc]
        for kind in ("abilities", "recall")
    }
    losses["perplexity"] = lambda point: math.log(point.figures["perplexity"].value)
    known = [kind for kind in losses if points and all(kind in point.figures for point in points)]
    return [
        _correlation(points, name, predictor, kind, losses[kind])
        for kind in known
        for name, predictor in PREDICTORS.items()
        if not any(math.isnan(predictor(point)) for point in points)
    ]


def spearman(x: Tensor, y: Tensor) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None where one side does not vary.

    Args:
        x: Numbers, (n,).
        y: Numbers, (n,).
    """
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else None


def _ranks(x: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(x.double(), return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[inverse]


def _correlation(
    points: Sequence[Point],
    name: str,
    predictor: Callable[[Point], float],
    kind: str,
    loss: Callable[[Point], float],
) -> Correlation:
    by_seed: dict[int, list[Point]] = {}
    for point in points:
        by_seed.setdefault(point.unit.seed, []).append(point)

    def rho(own: Sequence[Point]) -> float | None:
        x, y = ([part(point) for point in own] for part in (predictor, loss))
        return spearman(torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64))

    def at_marks(own: Sequence[Point]) -> float | None:
        marks = [[point for point in own if point.edits == mark] for mark in dict.fromkeys(p.edits for p in own)]
        found = [one for group in marks if len(group) >= LEAST_VARIANTS and (one := rho(group)) is not None]
        return sum(found) / len(found) if found else None

    whole = [rho(own) for own in by_seed.values()]
    within = [at_marks(own) for own in by_seed.values()]
    return Correlation(name, kind, *_over_units(whole), *_over_units(within), len(points), len(by_seed))


def _over_units(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """Mean of correlations over independent units with Student's 95 % interval, as Fisher's z = artanh ρ."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None, None
    z = torch.tensor(known, dtype=torch.float64).clamp(-0.9999, 0.9999).atanh()
    mean = float(z.mean())
    if len(known) < LEAST_SEEDS:
        return math.tanh(mean), None, None
    half = _student(len(known) - 1) * float(z.std()) / math.sqrt(len(known))
    return math.tanh(mean), math.tanh(mean - half), math.tanh(mean + half)


def _student(degrees: int) -> float:
    """The 0.975 quantile of Student's t, by bisection on its distribution function."""
    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        if _student_cdf(middle, degrees) < 0.975:
            low = middle
        else:
            high = middle
    return high


def _student_cdf(t: float, degrees: int) -> float:
    x = torch.linspace(0, t, 20_001, dtype=torch.float64)
    constant = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    density = math.exp(constant) * (1 + x.square() / degrees).pow(-(degrees + 1) / 2)
    return 0.5 + float(torch.trapezoid(density, x))


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


def markdown(summary: dict[str, Any]) -> str:
    """The summary as Markdown tables."""
    plan = summary["plan"]
    head = (
        f"{plan['editor']} on {plan['model']}: {plan['marks'][-1]} edits, {plan['seeds']} "
        f"{'order' if plan['seeds'] == 1 else 'orders'} of the edits, batches of {plan['batch_size']}."
    )
    parts = [f"# {plan['editor']} on {plan['model']}", head, _final_table(summary), _comparison_table(summary)]
    parts += [_correlation_table(summary)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _final_table(summary: dict[str, Any]) -> str:
    kinds = [kind for kind in SHOWN if any(kind in line["figures"] for line in summary["final"])]
    rows = [["before", "", *(_cell(summary["base"].get(kind)) for kind in kinds), "1", "0"]]
    for line in summary["immediate"]:
        cells = [_cell(line["figures"].get(kind)) for kind in kinds]
        rows.append([f"{line['restraint']} (immediate)", line["schedule"], *cells, "", ""])
    for line in summary["final"]:
        cells = [_cell(line["figures"].get(kind)) for kind in kinds]
        layers = [_range(line["layers"][name]) for name in ("κ(W₀+ΔW) / κ(W₀)", "‖ΔW‖₂ / σmax(W₀)")]
        rows.append([line["restraint"], line["schedule"], *cells, *layers])
    units = summary["final"][0]["figures"] if summary["final"] else {}
    names = [kind.replace("_", " ") + (f" (n = {units[kind]['n']})" if kind in units else "") for kind in kinds]
    caption = (
        "## After the last edit\n\nValue [95 % interval: seeds are resampled, and within each its requests, items or "
        "texts]; n counts these. For κ and ‖ΔW‖₂ the mean over seeds."
    )
    return f"{caption}\n\n" + _table(["restraint", "schedule", *names, "κ growth", "‖ΔW‖₂/σmax"], rows)


def _comparison_table(summary: dict[str, Any]) -> str:
    if not summary["comparisons"]:
        return ""
    kinds = [kind for kind in COMPARED if any(kind in one["figures"] for one in summary["comparisons"])]
    rows = [
        [one["pair"], *(_cell(one["figures"].get(kind), sign="+") for kind in kinds)] for one in summary["comparisons"]
    ]
    text = "## Differences\n\nThe first minus the second, paired on the same edits and items [95 % interval]."
    return f"{text}\n\n" + _table(["pair", *(kind.replace("_", " ") for kind in kinds)], rows)


def _correlation_table(summary: dict[str, Any]) -> str:
    if not summary["correlations"]:
        return ""
    rows = []
    for one in summary["correlations"]:
        whole = _rho(one["rho"], one["low"], one["high"])
        within = _rho(one["within"], one["within_low"], one["within_high"])
        rows.append([one["predictor"], one["loss"], whole, within, str(one["n"])])
    text = (
        "## What predicts the loss\n\n"
        "Spearman's ρ within each seed, over all its variants and marks; the mean over the seeds [Student's 95 % "
        "interval over the seeds, on Fisher's z]. “At one mark” is the mean of the correlations over the variants at "
        "each single mark, which leaves the number of edits out of play."
    )
    return f"{text}\n\n" + _table(["predictor", "loss of", "ρ", "ρ at one mark", "points"], rows)


def _rho(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:+.2f}" + ("" if low is None else f" [{low:+.2f}, {high:+.2f}]")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def _cell(figure: dict[str, Any] | None, sign: str = "") -> str:
    if figure is None or figure["value"] is None:
        return "–"
    digits = ".3f" if abs(figure["value"]) < 10 else ".3g"
    value = _number(figure["value"], sign + digits)
    if figure["low"] is None:
        return value
    return f"{value} [{_number(figure['low'], sign + digits)}, {_number(figure['high'], sign + digits)}]"


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else str(value)


def _range(spread: dict[str, float] | None) -> str:
    return "–" if spread is None else f"{spread['value']:.3g}"
