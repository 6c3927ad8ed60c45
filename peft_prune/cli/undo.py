"""`peft-prune undo`: take edits out of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..outputs import require_outputs
from .edit import say_fallen
from .models import resumed
from .options import BaseModel, Dtype, GgufFile, HistoryFile
from .places import in_gguf


def undo(
    history: HistoryFile,
    edits: Annotated[list[int], typer.Argument(help="Numbers of the edits.")],
    model: BaseModel,
    out: Annotated[Path, typer.Option(help="Folder for the adapter without them.")],
    reason: Annotated[str, typer.Option(help="For the log.")] = "asked for",
    gguf_file: GgufFile = None,
    dtype: Dtype = "float32",
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
) -> None:
    """Take edits out of an adapter, whenever they were made, and save what is left."""
    model = in_gguf(model, gguf_file)
    require_outputs(folders={"out": out}, inputs={"history": history, "model": model}, overwrite=overwrite)
    with resumed(history, model, dtype) as session:
        session.undo(edits, reason)
        session.save(out, overwrite=overwrite)
        standing, results = session.history.standing, session.results
    typer.echo(f"{len(set(edits))} undone, {standing} stand; adapter in {out}")
    say_fallen(results)
