"""Processor time of the command line's answers that need no model, beside an interpreter that imports typer."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

from measure import Row, in_seconds

REFERENCE = 'python -c "import typer"'
COMMAND = ["-m", "peft_prune.cli"]
GOAL = 4.0
"""An interpreter with typer takes about an eighth of a second, so that half a second is four of them."""
REPEATS = 9


def rows() -> Iterator[Row]:
    """`--version`, `--help` and a command's help; a few seconds."""
    calls = {"--version": ["--version"], "--help": ["--help"], "edit --help": ["edit", "--help"]}
    for what, arguments in calls.items():
        own, reference = [], []
        for _ in range(REPEATS):  # in turns, so that a busy moment falls on both
            reference.append(processor_seconds(["-c", "import typer"]))
            own.append(processor_seconds([*COMMAND, *arguments]))
        ratio = statistics.median(one / other for one, other in zip(own[1:], reference[1:], strict=True))
        measured, beside = statistics.median(own[1:]), statistics.median(reference[1:])
        note = "" if measured <= 0.5 else "above 0.5 s here"
        yield Row(f"peft-prune {what}", REFERENCE, ratio, GOAL, True, in_seconds(measured), in_seconds(beside), note)


def processor_seconds(arguments: list[str]) -> float:
    """Seconds of user and system time of one run of the interpreter."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user - before.children_user
    return spent + after.children_system - before.children_system
