"""Pictures as SVG that is part of a page: its font, its colours in light and dark, no file beside it."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import MissingPackageError

INK, FAINT, LIMIT = "#010101", "#020202", "#030303"
"""Stand-ins that `drawn` replaces by the page's own colours for text, grids and limits."""

SERIES = ("#2f7ec7", "#d9730d", "#2a9d6f", "#c2559d", "#8a6fd1", "#b8860b", "#2f8f8e", "#d1495b")
"""Colours that stand out from a white and from a nearly black page."""

STATE_COLOURS = {
    "applied": "#2a9d6f",
    "weakened": "#e0b040",
    "lost": "#c2559d",
    "undone": "#8a8f98",
    "failed": "#d1495b",
    "rolled back": "#8a6fd1",
    "rejected": "#d9730d",
    "skipped": "#5b7fa6",
}

_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", LIMIT: "var(--limit)"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "peft_prune",
    "font.size": 10.5,
    # what people typed is no formula
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def drawing(height: float = 2.6, width: float = 4.6) -> Iterator[tuple[Any, Callable[[str], str]]]:
    """Axes to draw on, and a function that gives the SVG under a key unique on the page.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingPackageError("matplotlib is not installed; pip install 'peft-prune[report]'") from None
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        # the page draws the text with its own fonts, which have glyphs that matplotlib's lack
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()

        def drawn(key: str) -> str:
            stream = io.StringIO()
            figure.savefig(stream, format="svg", metadata={"Date": None})
            return for_a_page(stream.getvalue(), key)

        yield axes, drawn


def for_a_page(svg: str, key: str) -> str:
    """An SVG file as part of a page: no head, no metadata, ids of its own, the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r'\1 aria-hidden="true" focusable="false"', svg, count=1)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r"url\(#", f"url(#{key}-", svg)
    svg = re.sub(r'href="#', f'href="#{key}-', svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
    svg = re.sub(r"(font: [^;\"]*?[\d.]+px) [^;\"]*", r"\1 var(--font)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def colour(index: int) -> str:
    """The colour of a series, in turn."""
    return SERIES[index % len(SERIES)]


def whole_ticks(axis: Any) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def plain_log(axis: Any) -> None:
    """At least three ticks of a logarithmic axis, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    locator: Any = MaxNLocator(5)
    for subs in ((1.0,), (1.0, 2.0, 5.0), tuple(map(float, range(1, 10)))):
        ticks = LogLocator(subs=subs)
        if sum(low <= tick <= high for tick in ticks.tick_values(low, high)) >= 3:
            locator = ticks
            break
    axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_above(axes: Any, columns: int = 3) -> None:
    """The legend in rows above the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        fitting = _fitting_columns(labels, columns, axes.figure.get_figwidth())
        axes.figure.legend(handles, labels, loc="outside upper left", ncols=fitting)


CHARACTERS_PER_INCH, HANDLE_CHARACTERS = 12.0, 9
"""Of the page's own font, which matplotlib cannot measure, and what a legend's handle and spacing take."""


def _fitting_columns(labels: Sequence[str], most: int, width: float) -> int:
    """The most columns in which labels, filled in column by column, stay within the picture."""
    for columns in range(min(most, len(labels)), 1, -1):
        rows = -(-len(labels) // columns)
        longest = [max(map(len, labels[start : start + rows])) for start in range(0, len(labels), rows)]
        if sum(longest) + HANDLE_CHARACTERS * len(longest) <= CHARACTERS_PER_INCH * width:
            return columns
    return 1


def cut(text: str, most: int = 30) -> str:
    """A name that is too long for its place up to its last whole word that fits, isolated from its neighbours' side."""
    if len(text) > most:
        whole = text[:most].rpartition(" ")[0]
        text = f"{whole} …" if len(whole) > most // 2 else f"{text[: most - 1]}…"
    # isolated, so that a name written from right to left does not turn its neighbours around
    return f"\u2068{text}\u2069"


def shortened(names: Sequence[str]) -> dict[str, str]:
    """Module names without the parts that all have in common, so that they fit beside an axis."""
    if len(names) < 2:
        return {name: name for name in names}
    parts = [name.split(".") for name in names]
    least = min(len(part) for part in parts)
    start = next((i for i in range(least) if len({part[i] for part in parts}) > 1), least)
    end = next((i for i in range(1, least - start + 1) if len({part[-i] for part in parts}) > 1), 1) - 1
    short = {name: ".".join(part[start : len(part) - end]) or name for name, part in zip(names, parts, strict=True)}
    return {name: f"layer {own}" if own.isdigit() else own for name, own in short.items()}
