"""Commands that a launcher has started several times: some share their work out, the others run once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

from ..processes import alone, is_alone_with, launched, launched_rank, start_processes, stop_processes, together

SHARED = ("edit", "resume", "consolidate", "evaluate")
"""Commands whose work processes share out; of every other one rank 0 alone does anything."""


@contextmanager
def by_processes(command: str) -> Iterator[bool]:
    """Whether this process has a part in a command; the block ends in all of them together.

    Rank 0 alone says anything. What is raised in one process is raised in all, or they say that one has ended.
    """
    if launched() == 1:
        yield True
        return
    if command not in SHARED:
        with alone():
            yield launched_rank() == 0
        return
    with _silent(launched_rank() > 0):
        start_processes()
        try:
            with together("the end of the command"):
                yield True
        finally:
            stop_processes()


def speaks_of(error: BaseException) -> bool:
    """Whether this process is the one to say what went wrong, and to end so: rank 0, or one that could not tell it.

    A launcher ends all processes as soon as one ends with an error, and rank 0 would not get to say it.
    """
    return launched() == 1 or launched_rank() == 0 or is_alone_with(error)


@contextmanager
def _silent(silent: bool) -> Iterator[None]:
    with ExitStack() as stack:
        if silent:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield
