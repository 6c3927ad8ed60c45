"""Pictures of their own, as image files: a sweep of restraints, a trace of layers, the course of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..editors.locate import Location
from ..errors import MissingPackageError
from ..folders import whole_file
from ..session import TradeOffs
from .drawing import whole_ticks
from .legible import name_points, show_hidden

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURES = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"<svg",
    b"<!DOCTYPE svg",
    b"%PDF",
    b"%!PS",
    b"RIFF",
    b"II*\0",
    b"MM\0*",
    b"GIF8",
)
"""What the files of the formats that matplotlib writes begin with, as far as they can be told by it."""
_COURSES = {"edited": "#c0392b", "PRUNE": "#1f6fb2", "consolidated": "#27825a"}
_ALONE = {"marker": "D", "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 2, "linestyle": "none"}
"""How a course of one point is drawn, so that it hides no other's."""


def plot_trade_offs(found: TradeOffs, path: str | Path) -> None:
    """Draw all settings, the front and the recommended one into an image file.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure = _figure((7, 5))
    axes = figure.subplots()
    axes.plot([p.success for p in found.front], [p.retention for p in found.front], color="0.7", zorder=1)
    axes.scatter([p.success for p in found.points], [p.retention for p in found.points], s=22, zorder=2)
    for point, name, marker in ((found.reference, "configured", "s"), (found.recommended, "recommended", "*")):
        label = f"{name}: {point.label}"
        axes.scatter([point.success], [point.retention], s=90, marker=marker, zorder=3, label=label)
    axes.margins(0.12)
    axes.set(xlabel="edits that hold (greedy answer)", ylabel="retention (probe)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    name_points(axes, {point.label: (point.success, point.retention) for point in found.front}, marker=10)
    _write(figure, path)


def plot_location(found: Location, path: str | Path) -> None:
    """Draw the effects over the layers.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure = _figure((7, 3.8))
    axes = figure.subplots()
    layers = range(len(found.block))
    axes.axvspan(found.layers[0] - 0.5, found.layers[-1] + 0.5, color="#1f6fb2", alpha=0.12, label="suggested")
    axes.plot(layers, found.mlp, "o-", color="#1f6fb2", label=f"MLP outputs, {found.window} around the layer")
    axes.plot(layers, found.block, "o-", color="#7f8c8d", label="block output")
    axes.set(xlabel="layer", ylabel="probability of the object restored", xticks=list(layers)[:: 1 + len(layers) // 20])
    axes.set_title(f"Restored at the subject's last token, {found.facts} facts")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    _write(figure, path)


def plot_course(
    edits: Sequence[int],
    condition: Mapping[str, Sequence[float]],
    ability: Mapping[str, Sequence[float]],
    path: str | Path,
    *,
    kept: str = "General abilities",
    measured: str = "share solved, mean of four",
) -> None:
    """Draw the condition number and the mean ability over the number of edits, with and without the restraint.

    A course with fewer figures than ``edits`` is of the last of them.

    Args:
        edits: Numbers of edits.
        condition: Condition numbers by course: "edited", "PRUNE", and perhaps "consolidated".
        ability: Shares by course.
        path: Image file.
        kept: What the shares are of.
        measured: How they are measured.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure = _figure((9, 3.8))
    left, right = figure.subplots(1, 2)
    for name, own in condition.items():
        label = "edited with PRUNE" if name == "PRUNE" else name
        style: dict[str, Any] = {"color": _COURSES[name], "marker": "o"} | (_ALONE if len(own) == 1 else {})
        left.plot(edits[-len(own) :], own, label=label, **style)
        right.plot(edits[-len(own) :], ability[name], **style)
    left.set(title="Condition number, largest of the edited layers", xlabel="edits", ylabel="κ(W₀ + ΔW)")
    left.set_ylim(0, 1.08 * max(map(max, condition.values())))
    right.set(title=kept, xlabel="edits", ylabel=measured, ylim=(-0.03, 1.03))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        whole_ticks(axes.xaxis)
        show_hidden(axes, [line for line in axes.lines if len(line.get_xdata()) > 1])
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    _write(figure, path)


def plot_before_and_after(figures: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]], path: str | Path) -> None:
    """Draw shares before and after the edits, with their intervals.

    Args:
        figures: By name, ``{"value", "low", "high"}`` before and after; an end that is None is left out.
        path: Image file.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure = _figure((7, 1.2 + 0.42 * len(figures)))
    axes = figure.subplots()
    for shift, (moment, colour) in enumerate((("before", "#7f8c8d"), ("after", "#1f6fb2"))):
        for place, both in enumerate(figures.values()):
            own, height = both[shift], place + 0.2 * (2 * shift - 1)
            if own.get("low") is not None and own.get("high") is not None:
                axes.plot([own["low"], own["high"]], [height, height], color=colour, alpha=0.5)
            axes.plot(own["value"], height, "o", color=colour, label=moment if place == 0 else None)
    axes.set_yticks(range(len(figures)), list(figures))
    axes.invert_yaxis()
    axes.set(xlabel="share, with its 95 % interval", xlim=(-0.03, 1.03))
    axes.grid(alpha=0.3, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _write(figure, path)


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def require_picture(path: Path) -> None:
    """Raise what drawing into this file would raise, or ValueError where it would take the place of no picture.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    known = sorted(_figure((1, 1)).canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in known:
        raise ValueError(f"plot: {path} must end in one of {', '.join(f'.{one}' for one in known)}")
    if path.is_file():
        with path.open("rb") as file:
            beginning = file.read(256)
        if beginning and not any(mark in beginning for mark in _PICTURES):
            raise ValueError(f"plot: {path} exists and is no picture; give another name")


def _write(figure: Any, path: str | Path) -> None:
    with whole_file(path) as part:
        figure.savefig(part, dpi=150)


def _figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingPackageError("matplotlib is not installed; pip install 'peft-prune[report]'") from None
    return Figure(figsize=size, layout="constrained")
