"""Progress on standard error, so that standard output stays clean: a bar on a terminal, elsewhere lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..moving import SECONDS
from .plain import say, shows_progress

Move = Callable[[str, int, int], None]


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Move]:
    """A function (what, done, total) that moves a bar, or writes a line every few seconds; nothing where ``quiet``."""
    if not shows_progress(quiet):
        yield lambda what, done, total: None
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        what = TextColumn("{task.description}", markup=False)
        columns = (what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


class Lines:
    """Writes how far something is, at most every few seconds, and never of what is over sooner.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if now - self._last >= SECONDS:
            self._last = now
            say(f"{what}: {done} of {total}", err=True)
