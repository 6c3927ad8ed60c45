"""Draws the pictures of the restraint and of the fronts that the docs show: `python docs/figures.py`."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from peft_prune.spectral import get_restraint

M = 5.0
CURVES = (("none", None), ("linear", None), ("log", 1.2), ("log", 1.5), ("log", 2.0), ("clip", None))


HERE = Path(__file__).parent
STYLES = {
    "editor alone": {"marker": "o", "color": "0.45"},
    "restrained": {"marker": "s", "color": "#0072b2"},
    "consolidated": {"marker": "*", "color": "#d55e00", "s": 150},
    "control": {"marker": "x", "color": "#009e73"},
}


def main() -> None:
    restraint()
    fronts()


def fronts() -> None:
    """Edits kept against model kept, of everything in `results/fronts.json`."""
    found = json.loads((HERE / "results" / "fronts.json").read_text())
    figure, panels = plt.subplots(1, len(found), figsize=(5.2 * len(found), 4.4), dpi=150, squeeze=False)
    for axes, (title, rows) in zip(panels[0], found.items(), strict=True):
        for kind, style in STYLES.items():
            own = [row for row in rows if row["kind"] == kind]
            places = [(kept(row, "locality", "recall"), kept(row, "efficacy", "generalization")) for row in own]
            if places:
                axes.scatter(*zip(*places, strict=True), label=kind, zorder=3, **{"s": 36, **style})
            for row, (x, y) in zip(own, places, strict=True):
                offset = row.get("offset", [6, -3])
                left = {"ha": "right"} if offset[0] < 0 else {}
                axes.annotate(row["name"], (x, y), offset, textcoords="offset points", fontsize=7, **left)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("model kept: mean of locality and recall")
        axes.grid(color="0.92", zorder=0)
        axes.margins(x=0.3, y=0.1)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0][0].set_ylabel("edits kept: mean of efficacy and generalization")
    panels[0][0].legend(frameon=False, fontsize=8, loc="center left")
    figure.tight_layout()
    figure.savefig(HERE / "fronts.png")


def kept(row: dict[str, float], *names: str) -> float:
    return sum(row[name] for name in names) / len(names)


def restraint() -> None:
    """What the restraints make of a singular value."""
    s = torch.linspace(0, 20, 401, dtype=torch.float64)
    figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=150)
    for name, alpha in CURVES:
        label = name if alpha is None else f"{name}, α = {alpha}"
        axes.plot(s, get_restraint(name, alpha)(s, M), label=label, color="0.6" if name == "none" else None)
    axes.axvline(M, color="0.8", linewidth=1)
    axes.text(M + 0.2, 0.4, "m = σmax(W₀)", color="0.4")
    axes.set_xlabel("singular value s of the sum of all edits")
    axes.set_ylabel("what acts, min(F(s), s)")
    axes.set_xlim(0, 20)
    axes.set_ylim(0, 20)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    axes.set_xticks(range(0, 21, 5))
    axes.set_yticks(range(0, 21, 5))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("restraint.png"))


if __name__ == "__main__":
    main()
