"""Draws the picture of the restraint that the explanation shows: `python docs/figures.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from peft_prune.spectral import get_restraint

M = 5.0
CURVES = (("none", None), ("linear", None), ("log", 1.2), ("log", 1.5), ("log", 2.0), ("clip", None))


def main() -> None:
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
