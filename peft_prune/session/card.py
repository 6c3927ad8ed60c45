"""The part of a card that a session knows: how the edits were computed, and what the layers look like with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cards import write_section
from ..editors import Editor
from ..monitoring import LayerCondition

SECTION = "session"


def write_session(path: Path, editor: Editor, figures: Mapping[str, LayerCondition], counts: Mapping[str, int]) -> None:
    """Write the section of a session into a card.

    Args:
        path: The card's file.
        editor: What has computed the edits.
        figures: Of every layer, where they are taken.
        counts: How many edits were asked for, by what became of them.
    """
    settings = dataclasses.asdict(editor.hyperparameters)
    values = [f"- {name}: {_value(value)}" for name, value in settings.items() if _is_plain(value)]
    lines = ["## How the edits were made", "", f"Editor: **{editor.name}**", "", *values, ""]
    if counts:
        lines += ["Edits asked for: " + ", ".join(f"{count} {state}" for state, count in counts.items()), ""]
    if figures:
        lines += ["| layer | rank | κ(W₀) | κ(W₀+ΔW) | ‖ΔW‖_F | ‖ΔW‖₂ / σmax(W₀) |", "|---|---|---|---|---|---|"]
    for name, own in figures.items():
        relative = own.delta_spectral_norm / own.sigma_max_base if own.sigma_max_base else math.inf
        shown = (own.condition_number_base, own.condition_number, own.delta_frobenius_norm, relative)
        cells = " | ".join(f"{one:.4g}" if math.isfinite(one) else "∞" for one in shown)
        lines.append(f"| `{name}` | {own.rank} | {cells} |")
    write_section(path, SECTION, "\n".join(lines))


def _is_plain(value: Any) -> bool:
    """Whether a setting can be shown: numbers and words, no paths and no texts of a user's."""
    if isinstance(value, (list, tuple)):
        return all(_is_plain(one) for one in value)
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and value.replace("_", "").isalnum())


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
