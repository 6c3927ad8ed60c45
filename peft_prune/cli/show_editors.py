"""`peft-prune editors`: which editing methods there are, and what can be set of each."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .options import DEFAULT_EDITOR, JsonOutput
from .plain import plain, say

if TYPE_CHECKING:
    from ..editors import Editor


def editors(
    name: Annotated[Optional[str], typer.Argument(help="One of them, to see all of it.")] = None,
    json_output: JsonOutput = False,
) -> None:
    """List the editing methods, or what can be set of one: names, defaults, published values and their sources."""
    from ..editors import EDITORS, editor_names
    from .models import print_json

    if name is not None and name not in EDITORS:
        raise ValueError(f"editor: {name!r} is not one of {', '.join(editor_names())}")
    found = {one: described(EDITORS[one]) for one in ([name] if name else editor_names())}
    if json_output:
        print_json({"editors": found})
    elif name is None:
        _print_all(found)
    else:
        _print_one(name, found[name])


def described(editor: type[Editor]) -> dict[str, Any]:
    """What a method declares of itself, and what was published for it."""
    from dataclasses import asdict

    from ..editors.presets import PRESETS

    hyperparameters = editor.hyperparameters_class
    meanings = _meanings(hyperparameters)
    presets = PRESETS.get(editor.name, {})
    return {
        "pretty_name": editor.pretty_name,
        "what": _what(editor),
        "paper": editor.paper,
        "year": editor.year,
        "url": editor.url,
        "needs_subject": editor.needs_subject,
        "hyperparameters": {
            field: {"default": default, "meaning": meanings.get(field, "")}
            for field, default in asdict(hyperparameters()).items()
        },
        "published": dict(editor.published_rules),
        "presets": {model: {"values": dict(one.values), "source": one.source} for model, one in presets.items()},
    }


def _what(editor: type[Editor]) -> str:
    """The sentence that its file begins with."""
    lines = (sys.modules[editor.__module__].__doc__ or "").splitlines()
    return lines[0] if lines else ""


def _meanings(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of those that it extends say of each field."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        block = (one.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
        field = ""
        for line in block.splitlines():
            name, colon, text = line.strip().partition(": ")
            if line.startswith(" " * 8) and not line.startswith(" " * 9) and colon and name.isidentifier():
                field, found[name] = name, text.strip()
            elif field and line.strip():
                found[field] += f" {line.strip()}"
    return found


def _print_all(found: Mapping[str, Mapping[str, Any]]) -> None:
    for name, one in found.items():
        say(f"{name:<11}{one['what'] or one['pretty_name']}{' The default.' if name == DEFAULT_EDITOR else ''}")
        say(f"{'':<11}{one['paper']}, {one['year']}")
        say(f"{'':<11}{one['url']}")
    say("peft-prune editors NAME lists what --set takes, with defaults and published values.")


def _print_one(name: str, one: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    say(f"{one['pretty_name']}: {one['paper']}, {one['year']}\n{one['url']}")
    table = Table(title=f"Set with --set name=value for --editor {name}")
    table.add_column("name", no_wrap=True)
    table.add_column("default", overflow="fold")
    table.add_column("meaning")
    for field, told in one["hyperparameters"].items():
        table.add_row(field, _typed(told["default"]), plain(told["meaning"].replace("`", "")))
    Console().print(table)
    if not one["needs_subject"]:
        say("Takes requests without a subject as well: questions with their answers, and texts.")
    if one["published"]:
        say("As published, and not by default: " + _settings(one["published"]))
    for model, preset in one["presets"].items():
        say(f"{model} ({preset['source']}):\n  {_settings(preset['values'])}")
    if one["presets"]:
        say("A model of one of these shapes gets its values where none are given.")


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_typed(value)}" for name, value in values.items())


def _typed(value: Any) -> str:
    """A value as it is written behind ``--set name=``."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
