"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

HistoryFile = Annotated[Path, typer.Argument(help="SQLite file of a session.", metavar="HISTORY")]
BaseModel = Annotated[str, typer.Option(help="The unedited base model: a folder or a Hub name.")]
EDITORS = ("alphaedit", "emmet", "ft", "locft_bf", "memit", "mend", "rome", "ultraedit")
"""The editing methods that come with the package, known before any of them is imported."""

DEFAULT_EDITOR = "memit"
EditorName = Annotated[
    str,
    typer.Option(
        help=f"Editing method: {', '.join(EDITORS[:-1])} or {EDITORS[-1]}. `peft-prune editors` tells of each.",
        autocompletion=lambda: list(EDITORS),
    ),
]
Settings = Annotated[
    Optional[list[str]],
    typer.Option(
        "--set",
        help="A hyperparameter of the editor as name=value; repeatable. `peft-prune editors NAME` lists them.",
    ),
]
Dtype = Annotated[str, typer.Option(help="Dtype to load the model in; 'auto' keeps its own.")]
Ask = Annotated[
    Optional[str],
    typer.Option(
        help="How requests are asked that do not say it themselves: plain, chat (through the model's chat template) or "
        "both; both if not given and the model has a template."
    ),
]
AbilityAsk = Annotated[
    str,
    typer.Option(
        help="How items of abilities are asked: plain, or chat, through the model's chat template; a model that is "
        "tuned for chat may give no answer plainly."
    ),
]
ServeDtype = Annotated[
    str,
    typer.Option(
        help="Dtype in which the model will be served, and in which edits are verified: float32, bfloat16 or float16; "
        "'auto' is the checkpoint's own."
    ),
]

SolveDevice = Annotated[
    Optional[str],
    typer.Option(help="Device to invert second moments on; where they stand, on the CPU, if not given."),
]

GgufFile = Annotated[
    Optional[str],
    typer.Option(help="Name of a GGUF file in the model's folder or repository; its weights are dequantized."),
]
Author = Annotated[
    Optional[str],
    typer.Option(envvar="PEFT_PRUNE_AUTHOR", help="Who edits, for the log; the user of this process if not given."),
]
Overwrite = Annotated[bool, typer.Option(help="Replace an existing folder.")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
