"""Figures in the manner of Ma et al. 2025: condition number, abilities and editing over edits, and singular values;
and what of the abilities each restraint keeps for what it keeps of the edits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation import kind_of
from ..folders import whole_file
from ..reporting.drawing import plain_log, whole_ticks
from ..reporting.legible import name_points, show_hidden
from .results import EDITING, Point, Results

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS = ("#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7b3294", "#1b7837")
MARKERS = "osD^vP*X<>"
KEPT = ("locality_greedy", "abilities", "recall")
"""What a restraint is to keep, beside the edits."""


def draw_figures(results: Results, folder: Path) -> list[Path]:
    """All figures, each as PNG and SVG; over edits the controls ``matched`` and ``strengths`` are left to the tables.

    Returns:
        The files.
    """
    figures = {"condition_number": _condition(results), "abilities": _abilities(results), "editing": _editing(results)}
    if kinds := [kind for kind in KEPT if all(kind in point.figures for point in results.points)]:
        figures["trade_off"] = _trade_off(results, kinds)
    if results.spectra:
        figures["singular_values"] = _spectra(results)
    written = []
    for name, figure in figures.items():
        for ending in ("png", "svg"):
            path = folder / f"{name}.{ending}"
            with whole_file(path) as part:
                figure.savefig(part, dpi=130, metadata={"Date": None} if ending == "svg" else None)
            written.append(path)
    return written


def _new(columns: int, rows: int = 1) -> tuple[Figure, np.ndarray]:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "peft_prune"
    figure = Figure(figsize=(4.6 * columns, 3.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _courses(results: Results) -> dict[str, list[list[Point]]]:
    """By label, for each mark the points of all seeds."""
    shown = [p for p in results.points if p.restraint.split(":")[0] not in ("matched", "strengths")]
    single = len({point.unit.schedule.word for point in shown}) == 1
    found: dict[str, dict[int, list[Point]]] = {}
    for point in shown:
        label = point.restraint if single else f"{point.restraint} ({point.unit.schedule.word})"
        found.setdefault(label, {}).setdefault(point.edits, []).append(point)
    return {label: [marks[mark] for mark in sorted(marks)] for label, marks in found.items()}


def _draw(axes: Axes, results: Results, value: Callable[[Point], float], base: float | None) -> list[Line2D]:
    """One line for each variant, the mean over seeds; a band from the least to the largest seed."""
    lines = []
    for index, (label, marks) in enumerate(_courses(results).items()):
        x = [points[0].edits for points in marks]
        values = [[value(point) for point in points] for points in marks]
        values = [[one for one in own if not math.isnan(one)] or [math.nan] for own in values]
        means = [sum(own) / len(own) for own in values]
        colour = COLOURS[index % len(COLOURS)]
        lines += axes.plot(x, means, f"{MARKERS[index % len(MARKERS)]}-", color=colour, label=label, ms=4, lw=1.3)
        if any(len(own) > 1 for own in values):
            axes.fill_between(
                x, [min(own) for own in values], [max(own) for own in values], color=colour, alpha=0.12, lw=0
            )
    if base is not None:
        axes.axhline(base, color="black", ls=":", lw=1, label="base model")
    axes.set_xlabel("edits")
    whole_ticks(axes.xaxis)
    return lines


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = min(6, len(labels), int(figure.get_figwidth() / 1.5))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _condition(results: Results) -> Figure:
    figure, axes = _new(2)
    left, right = axes.flat
    lines = _draw(left, results, lambda point: point.largest("condition_number"), _largest_base(results))
    left.set(title="Condition number", ylabel="largest κ(W₀ + ΔW) of a layer", yscale="log")
    others = _draw(right, results, _relative_norm, 1.0)
    right.set(title="Size of the update (dotted: 1)", ylabel="largest ‖ΔW‖₂ / σmax(W₀)", yscale="log")
    for panel, own in ((left, lines), (right, others)):
        plain_log(panel.yaxis)
        show_hidden(panel, own)
    _legend(figure, left)
    return figure


def _relative_norm(point: Point) -> float:
    return max(own["delta_spectral_norm"] / own["sigma_max_base"] for own in point.layers.values())


def _largest_base(results: Results) -> float:
    return max(own["condition_number_base"] for own in results.points[0].layers.values())


def _abilities(results: Results) -> Figure:
    known = dict.fromkeys(kind for point in results.points for kind in point.figures)
    kinds = [kind for kind in known if "/" in kind] + [kind for kind in ("recall", "perplexity") if kind in known]
    return _panels(results, kinds)


def _editing(results: Results) -> Figure:
    known = {kind for point in results.points for kind in point.figures}
    return _panels(results, [kind for kind in (*EDITING, "fluency") if kind in known])


def _panels(results: Results, kinds: Sequence[str]) -> Figure:
    columns = min(3, max(1, len(kinds)))
    figure, axes = _new(columns, -(-max(1, len(kinds)) // columns))
    for one in axes.flat[len(kinds) :]:
        one.set_visible(False)
    for one, kind in zip(axes.flat, kinds, strict=False):
        lines = _draw(one, results, partial(_value_of, kind), _base_value(results, kind))
        one.set_title(kind.replace("_greedy", " (greedy)").replace("/", ": ").replace("_", " "))
        if kind == "perplexity":
            one.set_yscale("log")
            plain_log(one.yaxis)
        elif kind_of(kind).bounds is not None:
            one.set_ylim(-0.03, 1.03)
        show_hidden(one, lines)
    if len(kinds):
        _legend(figure, axes.flat[0])
    return figure


def _value_of(kind: str, point: Point) -> float:
    return point.figures[kind].value if kind in point.figures else math.nan


def _base_value(results: Results, kind: str) -> float | None:
    values = [point.base[kind].value for point in results.points if kind in point.base]
    return sum(values) / len(values) if values else None


def _trade_off(results: Results, kinds: Sequence[str]) -> Figure:
    """What is kept of the model against what is kept of the edits after the last one, each the mean over seeds.

    Variants that scale all of ΔW alike are joined by one line, the logarithms by another: the one above and to the
    right of the other gives more for the same price.
    """
    last = [p for p in results.points if p.edits == results.plan.marks[-1] and not p.restraint.startswith("strengths")]
    kind = "merge" if any(p.unit.schedule.kind == "merge" for p in last) else last[0].unit.schedule.kind
    groups: dict[str, list[Point]] = {}
    for point in last:
        if point.unit.schedule.kind == kind:
            groups.setdefault(point.restraint, []).append(point)
    left = {word: sum(point.largest("delta_spectral_norm") for point in own) for word, own in groups.items()}
    figure, axes = _new(len(kinds))
    for one, figure_kind in zip(axes.flat, kinds, strict=True):
        places = {word: _mean_place(points, figure_kind) for word, points in groups.items()}
        for colour, label, belongs in _FAMILIES:
            # along a line by how much of ΔW is left: edits can come back where a restraint takes away what hides them
            own = [places[word] for word in sorted(filter(belongs, places), key=left.__getitem__)]
            if len(own) > 1:
                one.plot(*zip(*own, strict=True), "-", color=colour, lw=1.1, label=label)
        for word, place in places.items():
            uniform = word.startswith("matched") or word == "scale"
            one.plot(*place, "s" if uniform else "o", color=COLOURS[2] if uniform else COLOURS[1], ms=5)
        base = _base_value(results, figure_kind)
        if base is not None:
            one.axhline(base, color="black", ls=":", lw=1, label="base model")
        one.set(title=figure_kind.replace("_greedy", " (greedy)"), xlabel="efficacy (greedy)", xlim=(-0.03, 1.09))
    _legend(figure, axes.flat[0])
    for one, figure_kind in zip(axes.flat, kinds, strict=True):
        places = {word: _mean_place(points, figure_kind) for word, points in groups.items()}
        name_points(one, {word.replace("matched:", "as "): place for word, place in places.items()}, 7)
    return figure


def _mean_place(points: Sequence[Point], kind: str) -> tuple[float, float]:
    x, y = ([_value_of(one, point) for point in points] for one in ("efficacy_greedy", kind))
    return sum(x) / len(x), sum(y) / len(y)


_FAMILIES: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    (COLOURS[1], "log α", lambda word: word == "none" or word.startswith("log:")),
    (COLOURS[2], "all of ΔW scaled alike", lambda word: word in ("none", "scale") or word.startswith("matched:")),
)


def _spectra(results: Results) -> Figure:
    """The first seed's singular values of the layer whose update is largest."""
    first = {
        variant: layers
        for unit, variant, layers in results.spectra
        if unit.startswith("seed0-merge") and variant.split(":")[0] not in ("matched", "strengths")
    } or {variant: layers for unit, variant, layers in results.spectra if unit.startswith("seed0-")}
    any_layers = next(iter(first.values()))
    layer = max(any_layers, key=lambda name: max(any_layers[name]["raw"], default=0.0) / any_layers[name]["base"][0])
    figure, axes = _new(1)
    (one,) = axes.flat
    base = any_layers[layer]["base"]
    lines = one.plot(range(1, len(base) + 1), base, color="black", lw=2, label="W₀")
    one.axhline(base[0], color="black", ls=":", lw=1, label="σmax(W₀)")
    for index, (variant, layers) in enumerate(first.items()):
        values = [value for value in layers[layer]["effective"] if value > 1e-6 * base[0]]
        label = "ΔW" if variant == "none" else f"{variant}(ΔW)"
        lines += one.plot(range(1, len(values) + 1), values, color=COLOURS[index % len(COLOURS)], lw=1.3, label=label)
    one.set(title=layer, xlabel="index", ylabel="singular value", yscale="log", xscale="log")
    plain_log(one.xaxis)
    plain_log(one.yaxis)
    show_hidden(one, lines)
    _legend(figure, one)
    return figure
