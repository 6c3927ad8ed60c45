"""The summary of an experiment as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..evaluation.kinds import label
from .summary import COMPARED, SHOWN


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
    names = [label(kind) + (f" (n = {units[kind]['n']})" if kind in units else "") for kind in kinds]
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
    return f"{text}\n\n" + _table(["pair", *(label(kind) for kind in kinds)], rows)


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
        "interval over the seeds]. “At one mark” is the mean of the correlations over the variants at "
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
