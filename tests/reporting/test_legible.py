"""Pictures stay legible: what is drawn is measured, in the boxes of the artists themselves."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from matplotlib.text import Text

from peft_prune.experiment import figures as experiment_figures
from peft_prune.reporting import plots
from peft_prune.reporting.courses import course_chart, days_chart
from peft_prune.reporting.drawing import cut, drawing, plain_log
from peft_prune.reporting.legible import name_points, show_hidden
from peft_prune.session import TradeOff, TradeOffs

CROWDED = {
    "none": (0.65, 0.395), "log:1.2": (0.65, 0.40), "log:1.25": (0.667, 0.546), "log:1.24": (0.667, 0.54),
    "linear": (0.617, 0.69), "log:1.5": (0.60, 0.70), "clip": (0.0, 0.98), "scale": (0.02, 0.97),
}  # fmt: skip


def axes_of(size: tuple[float, float] = (4.6, 3.7)) -> Any:
    return Figure(figsize=size, layout="constrained").subplots()


def boxes(axes: Any) -> dict[str, Any]:
    """Where each name is drawn."""
    axes.figure.draw_without_rendering()
    return {text.get_text(): Text.get_window_extent(text) for text in axes.texts}


def test_names_beside_points_overlap_neither_each_other_nor_a_point() -> None:
    axes = axes_of()
    axes.plot(*zip(*CROWDED.values(), strict=True), "-o", ms=5)
    name_points(axes, CROWDED, 7)
    found = boxes(axes)
    assert {name for own in found for name in own.split(", ")} == set(CROWDED)
    assert not [pair for pair in combinations(found, 2) if found[pair[0]].overlaps(found[pair[1]])]
    points = axes.transData.transform(list(CROWDED.values()))
    assert not [name for name, box in found.items() if any(box.contains(*point) for point in points)]
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in found.values())


def test_a_name_is_nearest_to_its_own_point_or_joined_to_it() -> None:
    axes = axes_of((4.6, 3.7))
    places = {"none": (0.704, 0.792), "log:1.2": (0.696, 0.797), "linear": (0.527, 0.858), "log:1.5": (0.502, 0.857)}
    axes.plot(*zip(*places.values(), strict=True), "o", ms=5)
    axes.set(xlim=(-0.03, 1.09), ylim=(0.78, 1.0))
    name_points(axes, places, 7)
    for name, box in boxes(axes).items():
        gaps = {}
        for other, place in places.items():
            x, y = axes.transData.transform(place)
            gaps[other] = max(box.x0 - x, x - box.x1, 0) ** 2 + max(box.y0 - y, y - box.y1, 0) ** 2
        (text,) = [one for one in axes.texts if one.get_text() == name]
        assert min(gaps, key=gaps.__getitem__) == name or text.arrow_patch is not None


def test_points_upon_each_other_are_named_together() -> None:
    axes = axes_of()
    places = {"one": (0.5, 0.5), "other": (0.5, 0.5), "third": (0.9, 0.9)}
    axes.plot(*zip(*places.values(), strict=True), "o")
    name_points(axes, places)
    assert set(boxes(axes)) == {"one, other", "third"}


def test_a_line_under_others_is_seen_on_both_sides_of_them() -> None:
    axes = axes_of()
    x = [0, 10, 20, 30]
    courses = ([1.0] * 4, [1.0] * 4, [1.0, 1.0, 1.0, 0.5], [0.2, 0.4, 0.2, 0.4])
    lines = [axes.plot(x, y, "o-", lw=1.3, ms=4)[0] for y in courses]
    show_hidden(axes, lines)
    widths, sizes = [line.get_linewidth() for line in lines], [line.get_markersize() for line in lines]
    assert widths[0] > widths[1] + 1 > widths[2] + 2 and widths[2] == widths[3] == 1.3
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3] == 4


def test_lines_that_only_cross_stay_as_they_are() -> None:
    axes = axes_of()
    lines = [axes.plot([0, 1, 2], y, lw=1.3)[0] for y in ([0, 1, 2], [2, 1, 0])]
    show_hidden(axes, lines)
    assert [line.get_linewidth() for line in lines] == [1.3, 1.3]


@pytest.mark.parametrize("low, high", [(2.1, 4.3), (3.0, 3.9), (0.5, 40.0), (1.0, 1e6)])
def test_a_logarithmic_axis_has_plain_numbers_and_at_least_three(low: float, high: float) -> None:
    axes = axes_of()
    axes.plot([0, 1], [low, high])
    axes.set_yscale("log")
    plain_log(axes.yaxis)
    axes.figure.draw_without_rendering()
    bottom, top = axes.get_ylim()
    shown = [t.get_text() for t in axes.yaxis.get_majorticklabels() if bottom <= t.get_position()[1] <= top]
    assert len(shown) >= 3 and all(float(text) > 0 for text in shown)


def saved(monkeypatch: pytest.MonkeyPatch, draw: Any, *arguments: Any) -> Figure:
    """The figure that a function writes."""
    found: list[Figure] = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: found.append(figure))
    draw(*arguments, Path("unused.png"))
    found[0].draw_without_rendering()
    return found[0]


def whole(axes: Any) -> bool:
    """Whether every tick along the axis is a whole number."""
    low, high = axes.get_xlim()
    return all(float(tick).is_integer() for tick in axes.get_xticks() if low <= tick <= high)


@pytest.mark.parametrize("edits", [[0, 1], [0, 3], [0, 10, 20, 60]])
def test_the_course_has_whole_edits_and_a_legend_beside_its_lines(monkeypatch, edits: list[int]) -> None:
    own = {"edited": [10.0 + 9 * e for e in edits], "PRUNE": [10.0 + e for e in edits]}
    same = {key: [1.0 for _ in edits] for key in own}
    figure = saved(monkeypatch, plots.plot_course, edits, own, same)
    (legend,) = figure.legends
    assert all(whole(axes) for axes in figure.axes)
    assert not any(legend.get_window_extent().overlaps(axes.get_tightbbox()) for axes in figure.axes)
    below, above = figure.axes[1].lines
    assert below.get_linewidth() > above.get_linewidth() + 1


def test_the_consolidated_model_is_a_ring_at_the_last_edit_that_hides_no_line(monkeypatch) -> None:
    own = {"edited": [10.0, 20.0, 30.0], "PRUNE": [10.0, 15.0, 18.0], "consolidated": [18.0]}
    figure = saved(monkeypatch, plots.plot_course, [0, 10, 20], own, {name: [1.0] * len(own[name]) for name in own})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["edited", "edited with PRUNE", "consolidated"]
    for axes in figure.axes:
        *_, restrained, last = axes.lines
        assert last.get_xdata().tolist() == [20] and last.get_markerfacecolor() == "none"
        assert last.get_markersize() > restrained.get_markersize() + 2 and restrained.get_linewidth() < 2


def test_the_front_is_named_without_overlap_and_beside_its_legend(monkeypatch) -> None:
    points = tuple(TradeOff({"m": name}, *place, 1.0, on_front=True) for name, place in CROWDED.items())
    figure = saved(monkeypatch, plots.plot_trade_offs, TradeOffs(points, points[0], points[4]))
    found = boxes(figure.axes[0])
    assert len(found) >= len(CROWDED) - 2
    assert not [pair for pair in combinations(found.values(), 2) if pair[0].overlaps(pair[1])]
    assert not figure.legends[0].get_window_extent().overlaps(figure.axes[0].get_tightbbox())


def test_an_experiments_trade_off_names_every_restraint() -> None:
    unit = SimpleNamespace(schedule=SimpleNamespace(kind="merge", word="merge"))
    results = SimpleNamespace(plan=SimpleNamespace(marks=[10]), points=[])
    for word, (x, y) in CROWDED.items():
        figures = {"efficacy_greedy": SimpleNamespace(value=x), "recall": SimpleNamespace(value=y)}
        results.points.append(
            SimpleNamespace(unit=unit, restraint=word, edits=10, figures=figures, base={}, largest=lambda figure: 1.0)
        )
    figure = experiment_figures._trade_off(results, ["recall"])
    found = boxes(figure.axes[0])
    assert {name for own in found for name in own.split(", ")} == set(CROWDED)
    assert not [pair for pair in combinations(found.values(), 2) if pair[0].overlaps(pair[1])]


def test_the_charts_of_a_report_have_whole_ticks(monkeypatch) -> None:
    from datetime import date

    import peft_prune.reporting.courses as courses

    seen: list[Any] = []
    from contextlib import contextmanager

    @contextmanager
    def watched(**options: Any) -> Any:
        with drawing(**options) as (axes, drawn):
            yield axes, drawn
            seen.append(axes)

    monkeypatch.setattr(courses, "drawing", watched)
    days_chart({date(2026, 3, 3): {"applied": 1, "lost": 1}, date(2026, 3, 4): {"failed": 1}})
    course_chart("growth", "Growth", {"a": ([1, 2, 3], [1.0, 1.1, 1.2])}, ylabel="κ", base=1.0)
    days, growth = seen
    days.figure.draw_without_rendering()
    labels = [label.get_window_extent() for label in days.get_xticklabels()]
    assert len(labels) == 2 and not labels[0].overlaps(labels[1])
    low, high = days.get_ylim()
    assert all(float(tick).is_integer() for tick in days.get_yticks() if low <= tick <= high) and whole(growth)


def test_a_long_name_is_cut_at_a_word() -> None:
    assert cut("The mother tongue of {} is said to be") == "\u2068The mother tongue of {} is …\u2069"
    assert cut("short") == "\u2068short\u2069" and cut("x" * 40) == f"\u2068{'x' * 29}…\u2069"
