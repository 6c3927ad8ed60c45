"""The part of a card that says what was measured, from the figures that were measured and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..cards import write_section
from ..evaluation.kinds import label
from ..evaluation.table import figure_value, flat_figures, with_interval
from ..reporting.plots import can_draw, plot_before_and_after
from ..reporting.redaction import OpenRedactor, Redactor

SECTION = "measured"
PICTURE = "measured.png"


def write_measured(folder: Path, evaluation: Mapping[str, Any], *, redact: bool = True) -> None:
    """Write an evaluation into the card of a folder, with a picture where matplotlib is installed.

    Args:
        folder: The adapter's folder.
        evaluation: What ``evaluate`` returns, or ``peft-prune evaluate --json`` prints.
        redact: Show codes for the names of abilities that are the user's own.

    Raises:
        ValueError: It is no evaluation, or holds nothing that was measured.
    """
    before, after = figures_of(evaluation)
    redactor = Redactor() if redact else OpenRedactor()
    abilities = {name: redactor.ability(name) for name in evaluation["before"].get("abilities") or {}}
    names = {name: abilities.get(name) or label(name) for name in before}
    rows = [
        f"| {_cell(names[name])} | {_count(own)} | {_text(own)} | {_text(after[name])} |"
        for name, own in before.items()
    ]
    lines = ["## What was measured", "", "Before: the base's own outputs. In brackets: 95 % intervals.", ""]
    lines += ["| figure | n | before | after |", "|---|---|---|---|", *rows]
    shares = {
        names[name]: (before[name], after[name])
        for name in before
        if _is_share(before[name]) and _is_share(after[name])
    }
    if shares and can_draw():
        plot_before_and_after(shares, folder / PICTURE)
        lines += ["", f"![Before and after the edits]({PICTURE})"]
    layers = evaluation.get("layers") or {}
    if layers:
        lines += ["", *layer_lines(layers)]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="edit-requests",
            dataset_name=f"{evaluation.get('n_requests', 0)} edit requests",
            metric_type=(abilities.get(name) or name).replace("/", "_"),
            metric_name=names[name],
            metric_value=round(float(figure_value(own) or 0), 6),
        )
        for name, own in after.items()
        if figure_value(own) is not None and math.isfinite(float(figure_value(own) or 0))
    ]
    write_section(
        folder / "README.md", SECTION, "\n".join(lines), eval_results=results or None, model_name="peft-prune adapter"
    )


def figures_of(evaluation: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures that were measured, before and after, by name.

    Raises:
        ValueError: It is no evaluation, or holds nothing that was measured.
    """
    moments = [evaluation.get(moment) if isinstance(evaluation, Mapping) else None for moment in ("before", "after")]
    if not all(isinstance(moment, Mapping) for moment in moments):
        raise ValueError("evaluation: must be what `peft-prune evaluate --json` prints, with 'before' and 'after'")
    before, after = (flat_figures(moment or {}) for moment in moments)
    for moment in (before, after):
        for name, figure in moment.items():
            value = figure_value(figure)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ValueError(f"evaluation: {name}: {str(value)[:40]!r} must be a number")
            if isinstance(figure, Mapping) and value is not None and not {"n", "low", "high"} <= set(figure):
                raise ValueError(f"evaluation: {name}: has no n, low and high")
    names = [name for name in before if name in after and figure_value(after[name]) is not None]
    if not names:
        raise ValueError("evaluation: holds no figure that was measured")
    return {name: before[name] for name in names}, {name: after[name] for name in names}


def layer_lines(layers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of the layers: rank, κ before and after, and the size of ΔW."""
    lines = ["| layer | rank | κ(W₀) | κ(W₀+ΔW) | ‖ΔW‖_F | ‖ΔW‖₂ / σmax(W₀) |", "|---|---|---|---|---|---|"]
    for name, own in layers.items():
        norm, sigma = own.get("delta_spectral_norm"), own.get("sigma_max_base")
        relative = norm / sigma if norm is not None and sigma else None
        values = (
            own.get("condition_number_base"),
            own.get("condition_number"),
            own.get("delta_frobenius_norm"),
            relative,
        )
        lines.append(f"| `{name}` | {own.get('rank', '')} | " + " | ".join(map(_number, values)) + " |")
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if math.isfinite(value) else "∞"


def _is_share(figure: Any) -> bool:
    value = figure_value(figure)
    return isinstance(figure, Mapping) and value is not None and 0 <= value <= 1


def _count(figure: Any) -> str:
    return str(figure["n"]) if isinstance(figure, Mapping) else ""


def _text(figure: Any) -> str:
    value = figure_value(figure)
    if value is None:
        return "–"
    return with_interval(figure) if isinstance(figure, Mapping) else _number(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
