"""Write commands.md beside this file: every option of every command, as the code has them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from peft_prune.cli.app import GROUPS, app
from peft_prune.cli.command import SHARED
from peft_prune.cli.examples import EXAMPLES

PAGE = Path(__file__).with_suffix(".md")
BEGINNING = """\
<!-- Written by docs/reference/commands.py from the code; run it again after a change of a command. -->

# Every command and option

[Commands](../commands.md) says what each is for, and what the keys of `--json` mean. Every command has these as well:
"""
NOT_RUN = {
    "demo": "takes minutes; tests/cli runs it with one edit",
    "consolidate": "takes a minute; tests/cli runs it with two steps",
    "harness": "needs the data of a task from the Hub; tests/cli runs a task of its own",
    "experiment": "takes many minutes; tests/cli runs it with one edit",
    "tune": "needs edits that stand, and those of this page are undone above; docs/commands.md runs it",
    "ask": "needs a base that an adapter alone names, as one of the Hub does; README runs it",
    "push": "needs the Hub; tests/hub has one on loopback",
}
"""Why the example of a command is not run by the tests of this page."""


def page() -> str:
    """The page's text."""
    commands: Any = typer.main.get_command(app)
    shared = [one for one in commands.commands["edit"].params if one.name in SHARED]
    parts = [BEGINNING, table(shared)]
    for title, members in GROUPS.items():
        parts.append(f"## {title}\n")
        for member in members:
            parts += command(commands.commands[member.__name__])
    return "\n".join(parts)


def command(one: Any) -> Iterator[str]:
    """A command's part of the page."""
    yield f"### {one.name}\n"
    yield f"{escaped(inspect.cleandoc(one.help or ''))}\n"
    if one.name in NOT_RUN:
        yield f"<!-- not run: {NOT_RUN[one.name]} -->"
    yield "```console\n" + "\n".join(f"$ {line}" for line in EXAMPLES[one.name]) + "\n```\n"
    yield table([parameter for parameter in one.params if parameter.name not in SHARED])


def table(parameters: list[Any]) -> str:
    """Name, default and meaning of each."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    lines += [f"| {named(one)} | {default(one)} | {escaped(one.help or '')} |" for one in parameters]
    return "\n".join(lines) + "\n"


def named(one: Any) -> str:
    """An option as it is typed, or an argument's name."""
    words = [*one.opts, *one.secondary_opts] if one.param_type_name == "option" else [one.metavar or one.name.upper()]
    return ", ".join(f"`{word}`".replace("|", "\\|") for word in words)


def default(one: Any) -> str:
    """What holds where it is not given."""
    if one.required:
        return "required"
    if one.default in (None, ()) or one.default is False:
        return ""
    return "yes" if one.default is True else f"`{one.default}`"


def escaped(text: str) -> str:
    """A help text in a table of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
