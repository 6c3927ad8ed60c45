"""Figures side by side, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from ..characters import visible
from .kinds import label


def comparison_table(columns: Mapping[str, Mapping[str, Any]], *, title: str | None = None) -> Table:
    """One row for each figure, one column for each model or moment.

    A proportion shows its 95 % interval; its n, where it is the same in all columns, stands beside the name. A figure
    that has nothing to count in any column is left out.

    Args:
        columns: By heading, what :func:`~peft_prune.evaluation.evaluate` returns as "before" or "after".
        title: Shown above the table.
    """
    rows = {heading: flat_figures(figures) for heading, figures in columns.items()}
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    table = Table(title=None if title is None else Text(visible(title)))
    table.add_column("figure")
    for heading in rows:
        table.add_column(Text(visible(heading)), justify="right")
    for name in names:
        figures = [row.get(name) for row in rows.values()]
        if any(figure_value(figure) is not None for figure in figures):
            table.add_row(Text(visible(_label(name, figures))), *(_cell(figure) for figure in figures))
    return table


def flat_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by name, the abilities among them."""
    plain = {name: value for name, value in figures.items() if name != "abilities"}
    return plain | dict(figures.get("abilities", {}))


def figure_value(figure: Any) -> float | None:
    """The number of a figure, which has one with an interval or is one."""
    return figure.get("value") if isinstance(figure, Mapping) else figure


def _label(name: str, figures: list[Any]) -> str:
    counts = {figure["n"] for figure in figures if isinstance(figure, Mapping)}
    return label(name) + (f" (n = {counts.pop()})" if len(counts) == 1 else "")


def _cell(figure: Any) -> str:
    value = figure_value(figure)
    if value is None:
        return "–"
    if not isinstance(figure, Mapping):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return with_interval(figure)


def with_interval(figure: Mapping[str, Any]) -> str:
    """A figure's value, which must be known, and its interval where it has one."""
    return f"{figure['value']:.3f}" + ("" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]")


def signed(figure: Mapping[str, Any] | None) -> str:
    """A difference with its sign and, where it has one, its interval; empty for none."""
    if figure is None or figure["value"] is None:
        return ""
    if figure["low"] is None:
        return f"{figure['value']:+.3f}"
    return f"{figure['value']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"
