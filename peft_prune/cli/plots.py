"""The demo's figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

COLOURS = {"edited": "#c0392b", "PRUNE": "#1f6fb2"}


def draw_course(
    edits: Sequence[int],
    condition: Mapping[str, Sequence[float]],
    ability: Mapping[str, Sequence[float]],
    path: Path,
) -> bool:
    """Condition number and mean ability over the number of edits, as a PNG; False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in COLOURS.items():
        label = "edited with PRUNE" if name == "PRUNE" else name
        left.plot(edits, condition[name], "o-", color=colour, label=label)
        right.plot(edits, ability[name], "o-", color=colour, label=label)
    left.set(title="Condition number of the edited layer", xlabel="edits", ylabel="κ(W₀ + ΔW)")
    left.set_ylim(bottom=0)
    right.set(title="General abilities", xlabel="edits", ylabel="share solved, mean of four", ylim=(-0.03, 1.03))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return True
