"""What all commands share beside their own options: `--config`, `--quiet`, an example, and their place in the help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Optional, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from .config_file import read_settings
from .launched import by_processes
from .plain import quietly


class Commands(TyperGroup):
    """The commands, in the help by what they are for."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[Any]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            groups.setdefault(command.rich_help_panel, []).append(command)
        width = max(len(command.name) for commands in groups.values() for command in commands)
        for title, commands in groups.items():
            with formatter.section(title):
                # one width for all, so that the groups stand in line
                room = formatter.width - width - 5
                formatter.write_dl([(one.name.ljust(width), one.get_short_help_str(room)) for one in commands])


class SeveralValues(TyperCommand):
    """A command without positional arguments, whose repeatable options may also be given once with several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeatable = {name for one in self.params if getattr(one, "multiple", False) for name in one.opts}
        return super().parse_args(ctx, repeated(args, repeatable))


def repeated(arguments: Sequence[str], options: set[str]) -> list[str]:
    """The arguments with the name of each of these options before every one of its values."""
    found: list[str] = []
    current, taken = "", 0
    for argument in arguments:
        if argument.startswith("-"):
            current, taken = (argument, 0) if argument in options else ("", 0)
            found.append(argument)
            continue
        if current and taken:
            found.append(current)
        found.append(argument)
        taken += 1
    return found


def _configure(ctx: typer.Context, path: Path | None) -> Path | None:
    """Put what a file of options says in the place of the defaults, before anything else is read."""
    if path is not None and not ctx.resilient_parsing:
        ctx.default_map = {**(ctx.default_map or {}), **read_settings(path, ctx.command)}
    return path


Config = Annotated[
    Optional[Path],
    typer.Option(
        "--config",
        help="YAML file of this command's options by name; what is given on the command line overrules it.",
        is_eager=True,
        callback=_configure,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no closing words; tables, JSON and errors remain.")
]
SHARED: Mapping[str, Any] = {"config": (Config, None), "quiet": (Quiet, False)}
"""Options of every command, by parameter: annotation and default."""


def with_shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command's function with the options that all have."""
    hints = get_type_hints(function, include_extras=True)

    @wraps(function)
    def command(**values: Any) -> Any:
        shared = {name: values.pop(name) for name in SHARED}
        with quietly(shared["quiet"]), by_processes(function.__name__) as wanted:
            return function(**values) if wanted else None

    own = inspect.signature(function).parameters.items()
    parameters = [one.replace(annotation=hints[name]) for name, one in own]
    return taking(command, [*parameters, *(option(name, *shared) for name, shared in SHARED.items())])


def option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A parameter of a command that is given by name."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def taking(run: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> Callable[..., Any]:
    """A wrapper with these parameters in the place of those of the function that it wraps, as typer reads them."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    del run.__wrapped__  # type: ignore[attr-defined]
    return run


def epilog(examples: Sequence[str]) -> str:
    """Examples as they stand at the end of a command's help."""
    lines = "".join(f"\n  {line}" for example in examples for line in example.splitlines())
    return f"\b\n{'Example' if len(examples) == 1 else 'Examples'}:{lines}"
