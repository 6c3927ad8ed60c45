"""Pages as a reader types them: files are written, commands and Python run, in order, in one folder."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from unittest import mock

import yaml

from peft_prune.cli import main
from tests.docs.scene import Scene

FENCE = re.compile(
    r"(?P<before>[^\n]*\n)?^(?P<indent> *)```(?P<kind>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)
NOT_RUN = re.compile(r"<!-- not run: ((?:needs|takes) \S.*\S) -->")
"""What stands in the line before a block that is not run: what it needs or takes that tests do not have."""
PROGRAMS = ("peft-prune", "python")
WRITTEN = ("--out", "--plot", "--extract")
"""Options behind which a name is an output's."""


@dataclass(frozen=True)
class Block:
    """What stands between two fences.

    Args:
        kind: The word behind the opening fence; empty where there is none.
        title: Name of the file that it is, or None.
        text: What stands there.
        line: Line of the opening fence.
        reason: Why it is not run; None where it is.
    """

    kind: str
    title: str | None
    text: str
    line: int
    reason: str | None

    @property
    def is_run(self) -> bool:
        return self.reason is None

    def problem(self) -> str | None:
        """Why the block is neither run nor says what it would need; None where it is one of them."""
        if not self.is_run or self.title is not None or self.kind in ("python", "json", "yaml"):
            return None
        if self.kind != "console":
            return f"nothing runs a block of kind {self.kind!r}; make it console or python, or say why it is not run"
        foreign = sorted({words[0] for words in commands(self.text)} - set(PROGRAMS))
        if foreign:
            return f"{', '.join(foreign)}: not run here; say why in <!-- not run: needs ... -->"
        return None if any(commands(self.text)) else "no line begins with a dollar sign"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("kind")) + 1
        mark = NOT_RUN.search(found["before"] or "")
        yield Block(found["kind"], found["title"], dedent(found["text"]), line, mark[1] if mark else None)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each line behind a dollar sign; a backslash goes on with the next."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            yield shlex.split(line[2:], comments=True)


def type_page(page: Path, scene: Scene | None = None) -> int:
    """Do all that a page shows in the working folder; the number of commands and blocks that were run."""
    scene, count = scene or Scene(), 0
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        if not block.is_run:
            continue
        if block.kind == "json" and (block.title or ".json").endswith(".json"):
            json.loads(block.text)
        if block.kind == "yaml":
            yaml.safe_load(block.text)
        if block.title is not None:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            code = compile(block.text, place, "exec")
            scene.provide(code)
            exec(code, scene.names)
            count += 1
        elif block.kind == "console":
            scene.tidy()
            for words in commands(block.text):
                type_command(words, scene, place)
                count += 1
    return count


def type_command(words: list[str], scene: Scene, place: str) -> None:
    """Run one command line; what it reads is there, and what it writes is in nobody's way."""
    words, target = (words[:-2], Path(words[-1])) if ">" in words else (words, None)
    options = WRITTEN + (("--history",) if words[1] == "edit" else ())
    for before, word in pairwise(words):
        if before in options:
            scene.make(word)
        else:
            scene.bring(word)
    with redirect_stdout(target.open("w")) if target else nullcontext():
        code = main(words[1:]) if words[0] == "peft-prune" else python(words[1:])
    assert code == 0, f"{place}: {shlex.join(words)} ends with {code}"


def python(words: list[str]) -> int:
    """``python -m MODULE ...`` in this process; the exit code."""
    dash, module, *rest = words
    assert dash == "-m", words
    with mock.patch.object(sys, "argv", [module, *rest]):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return int(end.code or 0)
    return 0
