"""The model card that PEFT writes beside an adapter, without the place of the base on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..models.naming import public_name


def hide_places(card: Path, places: Iterable[str], name: str) -> None:
    """Put a base's public name in the place of its paths, where ``card`` is a card that PEFT has written."""
    paths = sorted((place for place in places if public_name(place) != place), key=len, reverse=True)
    if not paths or not card.is_file():
        return
    text = found = card.read_text(encoding="utf-8")
    if "library_name: peft" not in text:
        return
    for path in paths:
        text = text.replace(path, name)
    if text != found:
        card.write_text(text, encoding="utf-8")
