"""Tables of what was measured: figures of the layers, and an evaluation before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..evaluation.kinds import kind_of, label
from ..evaluation.table import figure_value, flat_figures, with_interval
from .document import Cell, Row, Table
from .hundreds import change, hundreds, relative_change
from .words import number


def layers_table(layers: Mapping[str, Mapping[str, Any]], when: str) -> Table:
    """Figures of the layers.

    Args:
        layers: Rows of `LayerCondition`'s fields by module.
        when: When they were taken.
    """
    rows: list[Row] = []
    for name, own in layers.items():
        base, edited = own["condition_number_base"], own["condition_number"]
        growth = None if not base or edited is None else 1.0 if math.isinf(base) else edited / base
        norm, sigma = own["delta_spectral_norm"], own["sigma_max_base"]
        relative = None if not sigma or norm is None else norm / sigma
        values = (own["rank"], base, edited, growth, relative, own.get("output_perturbation"))
        rows.append([name, *(Cell(number(value), value) for value in values)])
    return Table(
        "layers",
        f"Edited layers, {when}",
        ["layer", "rank of ΔW", "κ(W₀)", "κ(W₀+ΔW)", "growth", "‖ΔW‖₂ / σmax(W₀)", "change of ordinary outputs"],
        rows,
        numeric=range(1, 7),
        note="The change of ordinary outputs is the mean squared change over the mean squared output, where the "
        "session knew a second moment.",
        empty="No figures of the layers were taken.",
        wide=True,
    )


def evaluation_table(found: Mapping[str, Any], ability: Callable[[str], str] = str) -> Table:
    """An evaluation before and after, with n and 95 % intervals.

    Args:
        found: What `evaluate` returns.
        ability: How the name of a general ability is shown.
    """
    abilities = found["before"].get("abilities") or {}
    before, after = (flat_figures(found[moment]) for moment in ("before", "after"))
    gaps = found.get("difference", {})
    rows: list[Row] = []
    for name, own in before.items():
        if figure_value(own) is None and figure_value(after[name]) is None:
            continue
        gap = gaps.get(name)
        rows.append(
            [
                Cell(
                    (f"{ability(name)} {kind_of(name).arrow}" if name in abilities else label(name))
                    .replace(" greedy", ", free answers")
                    .replace("/", ": "),
                    note=kind_of(name).description,
                ),
                Cell(_count(own)),
                Cell(_text(name, own), figure_value(own)),
                Cell(_text(name, after[name]), figure_value(after[name])),
                _difference(name, own, after[name], gap),
            ]
        )
    return Table(
        "evaluation",
        "Before and after",
        ["figure", "n", "base model", "edited model", "difference"],
        rows,
        numeric=(1, 2, 3),
        note="Shares are so many of 100; in brackets the 95 % interval, how many of 100 it would be in very many cases "
        "like these. The arrow points to where a figure is better. Before comes from the base model's own outputs; "
        "free answers are greedy generations.",
        wide=True,
    )


def measured_value(found: Mapping[str, Any] | None, figure: str) -> float | None:
    """A figure of the edited model in an evaluation, where it was measured."""
    return None if found is None else figure_value(flat_figures(found["after"]).get(figure))


def _count(figure: Any) -> str:
    return str(figure["n"]) if isinstance(figure, Mapping) else ""


def _text(name: str, figure: Any) -> str:
    value = figure_value(figure)
    if value is None:
        return "–"
    if not isinstance(figure, Mapping):
        return number(value, 4)
    return hundreds(figure) if kind_of(name).bounds == (0.0, 1.0) else with_interval(figure)


def _difference(name: str, before: Any, after: Any, gap: Mapping[str, Any] | None) -> str:
    """What has changed, in words; without an interval where none was taken."""
    old, new = figure_value(before), figure_value(after)
    if gap is not None and gap["value"] is not None:
        return change(gap, kind_of(name))
    if old is None or new is None:
        return ""
    if kind_of(name).bounds != (0.0, 1.0):
        return relative_change(old, new)
    return change({"value": new - old, "low": None, "high": None}, kind_of(name))
