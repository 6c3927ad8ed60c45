"""Options that commands share, and those that take several values behind one name: ``--edited A B C``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

HistoryFile = Annotated[Path, typer.Argument(help="SQLite file of a session.", metavar="HISTORY")]
BaseModel = Annotated[str, typer.Option(help="The unedited base model: a folder or a Hub name.")]
Dtype = Annotated[str, typer.Option(help="Dtype to load the model in; 'auto' keeps its own.")]
Ask = Annotated[
    Optional[str],
    typer.Option(
        help="How requests are asked that do not say it themselves: plain, chat (through the model's chat template) or "
        "both; both if not given and the model has a template."
    ),
]
ServeDtype = Annotated[
    str,
    typer.Option(
        help="Dtype in which the model will be served, and in which edits are verified: float32, bfloat16 or float16; "
        "'auto' is the checkpoint's own."
    ),
]


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
