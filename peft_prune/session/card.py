"""The part of a card that a session knows: how the edits were computed, and what became of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cards import write_section
from ..editors import Editor

SECTION = "session"


def write_session(path: Path, editor: Editor, counts: Mapping[str, int]) -> None:
    """Write the section of a session into a card.

    Args:
        path: The card's file.
        editor: What has computed the edits.
        counts: How many edits were asked for, by what became of them.
    """
    settings = dataclasses.asdict(editor.hyperparameters)
    values = [f"- {name}: {_value(value)}" for name, value in settings.items() if _is_plain(value)]
    lines = ["## How the edits were made", "", f"Editor: **{editor.name}**", "", *values, ""]
    if counts:
        lines += ["Edits asked for: " + ", ".join(f"{count} {state}" for state, count in counts.items()), ""]
    write_section(path, SECTION, "\n".join(lines))


def _is_plain(value: Any) -> bool:
    """Whether a setting can be shown: numbers and words, no paths and no texts of a user's."""
    if isinstance(value, (list, tuple)):
        return all(_is_plain(one) for one in value)
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and value.replace("_", "").isalnum())


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
