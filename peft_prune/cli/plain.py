"""Text of users, models and files on a terminal: as it is, without acting on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from ..characters import visible

if TYPE_CHECKING:
    from rich.text import Text


def plain(text: str) -> Text:
    """A cell or a title that shows ``text`` as it is: brackets are no markup, and control characters are visible."""
    from rich.text import Text

    return Text(visible(text))


def say(text: str, *, err: bool = False) -> None:
    """Print a line that may hold such text."""
    typer.echo(visible(text), err=err)
