"""Charts that several reports share: bars by day, courses over edits, singular values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from ..monitoring import Limit
from .document import Cell, Chart, Row, Table
from .drawing import INK, LIMIT, STATE_COLOURS, colour, cut, drawing, legend_above, plain_log, shortened, whole_ticks
from .legible import show_hidden
from .words import count, number

_DASHES = {"linestyle": (0, (5, 3)), "linewidth": 1.4}


def days_chart(by_day: Mapping[date, Mapping[str, int]]) -> Chart:
    """Edits of each day by state; of each week or month where there are too many days to be seen."""
    kind, periods = _periods(by_day)
    states = [state for state in STATE_COLOURS if any(counts.get(state) for counts in periods.values())]
    starts = list(periods)
    width = {"day": 0.8, "week": 5.5, "month": 24.0}[kind]
    with drawing() as (axes, drawn):
        bottom = [0] * len(starts)
        for state in states:
            heights = [periods[start].get(state, 0) for start in starts]
            axes.bar(_places(starts), heights, width, bottom=bottom, color=STATE_COLOURS[state], label=state)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes.set_xlim(min(_places(starts)) - 4 * width, max(_places(starts)) + 4 * width)
        _date_ticks(axes, starts)
        whole_ticks(axes.yaxis)
        axes.set_ylabel("edits")
        axes.grid(axis="x", visible=False)
        legend_above(axes, 4)
        svg = drawn("days")
    rows = [[start.isoformat(), *(str(periods[start].get(state, 0)) for state in states)] for start in starts]
    total = sum(sum(counts.values()) for counts in periods.values())
    columns = [f"{kind} (UTC)", *states]
    said = f"{count(total, 'edit')} on {count(len(by_day), 'day')}, by what became of them."
    numbers = Table("days-numbers", "", columns, rows, numeric=range(1, len(states) + 1))
    return Chart("days", f"Edits per {kind}", svg, said, numbers)


def relations_chart(by_relation: Mapping[str, Mapping[str, int]], held: Mapping[str, str], most: int = 12) -> Chart:
    """Edits of each relation by state; rare relations together.

    Args:
        by_relation: States by relation, the most frequent first.
        held: How many of a relation's edits that were tried took, in words.
        most: Relations that are drawn.
    """
    shown = dict(list(by_relation.items())[:most])
    rest = list(by_relation.items())[most:]
    if rest:
        together: dict[str, int] = {}
        for _, counts in rest:
            for state, amount in counts.items():
                together[state] = together.get(state, 0) + amount
        shown[f"{len(rest)} other relations"] = together
    states = [state for state in STATE_COLOURS if any(counts.get(state) for counts in by_relation.values())]
    names = list(shown)
    with drawing(height=1.0 + 0.26 * len(names)) as (axes, drawn):
        left = [0] * len(names)
        for state in states:
            widths = [shown[name].get(state, 0) for name in names]
            axes.barh(range(len(names)), widths, 0.7, left=left, color=STATE_COLOURS[state], label=state)
            left = [low + width for low, width in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(names)), [cut(name) for name in names])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        whole_ticks(axes.xaxis)
        axes.set_xlabel("edits")
        legend_above(axes, 4)
        svg = drawn("relations")
    rows = [[name, *(str(counts.get(s, 0)) for s in states), held[name]] for name, counts in by_relation.items()]
    columns = ["relation", *states, "took, of those tried"]
    numbers = Table("relations-numbers", "", columns, rows, numeric=range(1, len(states) + 2))
    drawn_count = min(most, len(by_relation))
    said = f"The {drawn_count} most frequent of {count(len(by_relation), 'relation')}, by what became of their edits."
    return Chart("relations", "Edits by relation", svg, said, numbers)


def course_chart(
    key: str,
    title: str,
    courses: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    ylabel: str,
    xlabel: str = "edits asked for",
    limits: Sequence[Limit] = (),
    base: float | None = None,
    caption: str = "",
    ticks: Sequence[str] = (),
) -> Chart:
    """Figures over the edits, one line each, with the limit and the base's own value as lines across.

    Args:
        key: Short name.
        title: Heading.
        courses: Places and values by name; infinite values are drawn at the upper edge, and those that are no number
            leave a gap.
        ylabel: Of the values.
        xlabel: Of the places.
        limits: Drawn with their values.
        base: Drawn dotted.
        caption: Below the picture.
        ticks: Names of the places, where these are 0, 1, 2, ….
    """
    short = shortened(list(courses))
    finite = [y for _, values in courses.values() for y in values if math.isfinite(y)]
    infinite = any(math.isinf(y) for _, values in courses.values() for y in values)
    top = 1.15 * max([*finite, *(limit.value for limit in limits), 1.0])
    with drawing() as (axes, drawn):
        lines = []
        for index, (name, (places, values)) in enumerate(courses.items()):
            seen = [top if math.isinf(y) else y for y in values]
            style = "o-" if len(places) <= 40 else "-"
            label = short[name] if len(courses) > 1 else None
            lines += axes.plot(places, seen, style, ms=3, color=colour(index), label=label)
            broken = [(x, top) for x, y in zip(places, values, strict=True) if math.isinf(y)]
            if broken:
                axes.plot(*zip(*broken, strict=True), "^", ms=6, color=colour(index))
        for limit in limits:
            axes.axhline(limit.value, color=LIMIT, label=f"limit {number(limit.value)}", **_DASHES)
        if base is not None:
            axes.axhline(base, color=INK, linestyle=":", linewidth=1.2, label=f"base model {number(base)}")
        if finite and limits and max(finite) > 20 * limits[0].value > 0:
            axes.set_yscale("log")
            plain_log(axes.yaxis)
        all_places = [place for own, _ in courses.values() for place in own]
        if ticks:
            axes.set_xticks(range(len(ticks)), [cut(tick, 16) for tick in ticks])
        else:
            whole_ticks(axes.xaxis)
        if len(set(all_places)) == 1:
            axes.set_xlim(all_places[0] - 1, all_places[0] + 1)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        show_hidden(axes, lines)
        legend_above(axes, 2 if len(courses) > 4 else 3)
        svg = drawn(key)
    numbers = _course_numbers(key, courses, short, xlabel, ticks)
    latest = "; ".join(f"{short[name]}: {number(values[-1])}" for name, (_, values) in courses.items())
    said = "".join(f" A limit is {number(limit.value)}." for limit in limits)
    if infinite:
        caption = (
            f"{caption} A triangle at the upper edge stands for an infinite value: the matrix is singular.".strip()
        )
    return Chart(key, title, svg, f"{ylabel} over {xlabel}. Latest: {latest}.{said}", numbers, caption)


def spectrum_chart(
    key: str, title: str, curves: Mapping[str, Sequence[float]], limit: float | None, caption: str = ""
) -> Chart:
    """Singular values, the largest first, beside σmax(W₀) where it is known."""
    with drawing() as (axes, drawn):
        lines = []
        for index, (name, values) in enumerate(curves.items()):
            shown = [value for value in values if value > 0]
            lines += axes.plot(
                range(1, len(shown) + 1),
                shown,
                "o-" if len(shown) <= 40 else "-",
                ms=3,
                color=colour(index),
                label=name,
            )
        if limit is not None:
            axes.axhline(limit, color=LIMIT, label=f"σmax(W₀) {number(limit)}", **_DASHES)
        axes.set(xlabel="singular direction, the largest first", ylabel="singular value", yscale="log")
        plain_log(axes.yaxis)
        whole_ticks(axes.xaxis)
        show_hidden(axes, lines)
        legend_above(axes, 4)
        svg = drawn(key)
    length = max((len(values) for values in curves.values()), default=0)
    rows = [
        [str(place + 1), *(number(values[place], 4) if place < len(values) else "" for values in curves.values())]
        for place in range(min(length, 200))
    ]
    numbers = Table(f"{key}-numbers", "", ["direction", *curves], rows, numeric=range(len(curves) + 1))
    largest = "; ".join(f"{name}: {number(values[0])}" for name, values in curves.items() if len(values))
    return Chart(key, title, svg, f"Singular values. Largest: {largest}.", numbers, caption)


def bars_chart(key: str, title: str, bars: Mapping[str, float], *, xlabel: str, described: str) -> Chart:
    """Horizontal bars, the first at the top.

    Args:
        key: Short name.
        title: Heading.
        bars: Lengths by label.
        xlabel: Of the lengths.
        described: For those who cannot see it.
    """
    names = list(bars)
    with drawing(height=0.7 + 0.24 * max(len(names), 3)) as (axes, drawn):
        axes.barh(range(len(names)), list(bars.values()), 0.7, color=colour(0))
        axes.set_yticks(range(len(names)), [cut(name) for name in names])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(xlabel)
        svg = drawn(key)
    rows: list[Row] = [[name, Cell(number(value, 4), value)] for name, value in bars.items()]
    return Chart(key, title, svg, described, Table(f"{key}-numbers", "", ["", xlabel], rows, numeric=(1,)))


def _course_numbers(
    key: str,
    courses: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    short: Mapping[str, str],
    xlabel: str,
    ticks: Sequence[str],
) -> Table:
    places = sorted({place for own, _ in courses.values() for place in own})
    values = {name: dict(zip(*own, strict=True)) for name, own in courses.items()}
    rows = [
        [
            ticks[int(place)] if ticks else f"{place:g}",
            *(Cell(number(own[place], 4), own[place]) if place in own else "" for own in values.values()),
        ]
        for place in places
    ]
    return Table(
        f"{key}-numbers", "", [xlabel, *(short[name] for name in courses)], rows, numeric=range(1, len(courses) + 1)
    )


def _places(days: Sequence[date]) -> list[float]:
    from matplotlib.dates import date2num

    return [float(date2num(day)) for day in days]


def _periods(by_day: Mapping[date, Mapping[str, int]]) -> tuple[str, dict[date, dict[str, int]]]:
    """The days, or the weeks or months that they lie in, by their first day."""
    days = list(by_day)
    length = (days[-1] - days[0]).days
    kind = "day" if length <= 60 else "week" if length <= 420 else "month"
    found: dict[date, dict[str, int]] = {}
    for day, counts in by_day.items():
        start = day
        if kind == "week":
            start = day - timedelta(days=day.weekday())
        elif kind == "month":
            start = day.replace(day=1)
        own = found.setdefault(start, {})
        for state, amount in counts.items():
            own[state] = own.get(state, 0) + amount
    return kind, found


def _date_ticks(axes: Any, days: Sequence[date]) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if len(days) <= 3 and (days[-1] - days[0]).days <= 3:
        axes.set_xticks(_places(days), [f"{day.day} {day:%b}" for day in days])
        axes.set_xlabel(" and ".join(dict.fromkeys(str(day.year) for day in days)))
        return
    locator = AutoDateLocator(minticks=2, maxticks=5)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
