"""Pages as a reader types them: files are written, commands and Python run, in order, in one folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_prune.cli import main

FENCE = re.compile(
    r"(?P<before>[^\n]*\n)?^```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$", re.M | re.S
)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")


@dataclass(frozen=True)
class Block:
    """What stands between two fences: its kind, the file that it is, and the text."""

    kind: str
    title: str | None
    text: str
    line: int
    is_run: bool


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("kind")) + 1
        left_out = NOT_RUN.search(found["before"] or "") is not None
        yield Block(found["kind"], found["title"], found["text"], line, not left_out)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each line behind a dollar sign; a backslash goes on with the next."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            yield shlex.split(line[2:], comments=True)


def type_page(page: Path, names: dict[str, Any] | None = None) -> int:
    """Do all that a page shows in the working folder; the number of commands and blocks that were run."""
    names, count = {} if names is None else names, 0
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        if not block.is_run:
            continue
        if block.title is not None:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            exec(compile(block.text, place, "exec"), names)
            count += 1
        elif block.kind == "console":
            for words in commands(block.text):
                if words[0] == "peft-prune":
                    code = main(words[1:])
                    assert code == 0, f"{place}: {shlex.join(words)} ends with {code}"
                    count += 1
    return count
