"""Text of users, models and files on a terminal: as it is, without acting on it; and what `--quiet` leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import typer

from ..characters import visible

if TYPE_CHECKING:
    from rich.text import Text

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """For a command that shall say no more than it must, where ``quiet``."""
    before = _QUIET.set(quiet)
    try:
        yield
    finally:
        _QUIET.reset(before)


def shows_progress(json_output: bool) -> bool:
    """Whether a command may show how far it is."""
    return not (json_output or _QUIET.get())


def plain(text: str) -> Text:
    """A cell or a title that shows ``text`` as it is: brackets are no markup, and control characters are visible."""
    from rich.text import Text

    return Text(visible(text))


def say(text: str, *, err: bool = False) -> None:
    """Print a line that may hold such text."""
    typer.echo(visible(text), err=err)


def close_with(text: str) -> None:
    """Print a line that tells what was done, which a quiet command leaves out."""
    if not _QUIET.get():
        say(text)
