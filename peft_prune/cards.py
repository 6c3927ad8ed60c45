"""Model cards in sections: each part of the package writes its own, between marks, and leaves all else alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

_SECTION = re.compile(
    r"<!-- peft-prune: begin (?P<name>[^>\n]*) -->\n.*?\n<!-- peft-prune: end (?P=name) -->", re.DOTALL
)
_FRAMEWORK = "### Framework versions"


def write_section(path: Path, name: str, text: str, **data: Any) -> None:
    """Put one section into a card, in the place of the section of that name; a card that is not there is made.

    A first section goes to the top and later ones behind it; what stands outside of the marks stays as it is, but for
    a template of PEFT's that nobody has filled in.

    Args:
        path: The card's file, README.md in an adapter's folder.
        name: Name of the section.
        text: Its Markdown.
        data: Metadata of the card. ``tags`` are added to those that are there, the others are set; None leaves a value
            as it is.

    Raises:
        ValueError: The metadata of the card that is there is no YAML.
    """
    card = read_card(path)
    own = f"<!-- peft-prune: begin {name} -->\n{text.strip()}\n<!-- peft-prune: end {name} -->"
    found = list(_SECTION.finditer(card.text))
    same = [one for one in found if one["name"] == name]
    if same:
        body = card.text[: same[0].start()] + own + card.text[same[0].end() :]
    elif found:
        body = card.text[: found[-1].end()] + "\n\n" + own + card.text[found[-1].end() :]
    else:
        body = own + "\n\n" + card.text.lstrip()
    card.text = body.strip() + "\n"
    for key, value in data.items():
        if key == "tags":
            card.data["tags"] = _united(card.data.get("tags"), value)
        elif value is not None:
            card.data[key] = value
    card.save(path)


def add_tags(path: Path, tags: Iterable[str]) -> None:
    """Add tags to the metadata of a card that is there."""
    card = read_card(path)
    card.data["tags"] = _united(card.data.get("tags"), tags)
    card.save(path)


def read_card(path: Path) -> Any:
    """The card in a file; an empty one where there is none, or only a template that nobody has filled in.

    Raises:
        ValueError: Its metadata are no YAML.
    """
    if not path.is_file():
        return _empty(ModelCardData())
    try:
        card = ModelCard.load(path, ignore_metadata_errors=True)
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"card: the metadata at the top of {path} cannot be read: {reason}") from None
    return _empty(card.data) if _is_blank(card.text) else card


def take_text(path: Path, other: Path) -> None:
    """Give a card what people wrote into another one, text and metadata, with its own sections in their places.

    Raises:
        ValueError: The metadata of the other card cannot be read.
    """
    card, theirs = read_card(path), read_card(other)
    own = {found["name"]: found[0] for found in _SECTION.finditer(card.text)}
    there = {found["name"] for found in _SECTION.finditer(theirs.text)}
    # a section that this card has no more is not kept: it would speak of what was there before
    text = _SECTION.sub(lambda found: own.get(found["name"], ""), theirs.text).strip()
    rest = [section for name, section in own.items() if name not in there]
    data = theirs.data.to_dict()
    tags = _united(data.get("tags"), card.data.get("tags") or [])
    for key, value in {**card.data.to_dict(), "tags": tags}.items():
        theirs.data[key] = value
    theirs.text = "\n\n".join(filter(None, [*rest, text] if not there else [text, *rest])) + "\n"
    theirs.save(path)


def own_text(path: Path) -> str:
    """What people wrote into a card: all of its text outside of the sections."""
    return _SECTION.sub("", read_card(path).text).strip()


def has_section(path: Path, name: str) -> bool:
    """Whether a card holds the section of that name."""
    return any(found["name"] == name for found in _SECTION.finditer(read_card(path).text))


def _empty(data: Any) -> Any:
    card = ModelCard("---\n{}\n---\n", ignore_metadata_errors=True)
    card.data = data
    return card


def _is_blank(text: str) -> bool:
    """Whether a card is the template that PEFT saves, with nothing of a user's in it."""
    template = ModelCard.from_template(ModelCardData()).text
    return _bare(text) == _bare(template)


def _bare(text: str) -> list[str]:
    kept = (line.strip() for line in text.partition(_FRAMEWORK)[0].splitlines())
    return [line for line in kept if line]


def _united(there: Any, more: Iterable[str]) -> list[str]:
    given = [there] if isinstance(there, str) else list(there or [])
    return list(dict.fromkeys([*map(str, given), *more]))
