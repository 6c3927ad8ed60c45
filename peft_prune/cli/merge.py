"""`peft-prune merge`: write a plain checkpoint with the edits in its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from ..folders import whole_folder
from ..outputs import require_outputs
from .models import companions, load_adapter, load_model, load_tokenizer, print_json
from .options import GgufFile
from .places import in_gguf


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter, or user/name[@revision] on the Hub.")],
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hub name.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    gguf_file: GgufFile = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the checkpoint; 'auto' keeps the base's.")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Add an adapter to its base model and write a checkpoint that needs neither PEFT nor this package."""
    model = in_gguf(model, gguf_file)
    require_outputs(folders={"out": out}, inputs={"adapter": adapter, "model": model}, overwrite=overwrite)
    tokenizer = load_tokenizer(model)
    edited = load_adapter(load_model(model, dtype), adapter)
    beside = companions(model)
    pending = edited.restraint_is_pending()
    with whole_folder(out, overwrite=overwrite) as folder:
        edited.merge_and_unload(safe_merge=True, progressbar=not json_output).save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        for file, name in beside:
            if not (folder / name).exists():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, folder / name)
    if json_output:
        print_json({"checkpoint": str(out), "adapter": str(adapter), "restraint_applied": pending})
    else:
        typer.echo(f"Merged checkpoint in {out}" + (", the pending restraint applied first" if pending else ""))
