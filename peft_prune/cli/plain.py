"""Text of users, models and files on a terminal: as it is, without acting on it."""

from __future__ import annotations

import typer
from rich.text import Text

from ..characters import visible


def plain(text: str) -> Text:
    """A cell or a title that shows ``text`` as it is: brackets are no markup, and control characters are visible."""
    return Text(visible(text))


def say(text: str, *, err: bool = False) -> None:
    """Print a line that may hold such text."""
    typer.echo(visible(text), err=err)
