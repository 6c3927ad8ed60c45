"""`peft-prune merge`: write a plain checkpoint, or a GGUF, with the edits in its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..export import MergedGguf, lost_in_gguf, merge_into_gguf, require_quantization
from ..folders import whole_folder
from ..outputs import Given, require_outputs
from .models import companions, load_adapter, load_model, load_tokenizer, print_json
from .plain import say
from .requested import edits_asked, lost_of, tell_lost


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter, or user/name[@revision] on the Hub.")],
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hub name.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    dtype: Annotated[str, typer.Option(help="Dtype of the checkpoint; 'auto' keeps the base's.")] = "auto",
    gguf: Annotated[
        Optional[Path],
        typer.Option(help="A GGUF of the base: write a GGUF with the edits in place of the checkpoint."),
    ] = None,
    quantization: Annotated[
        str,
        typer.Option(
            help="With --gguf: f16, q8_0 or q4_0; keep gives the edited tensors Q8_0 and leaves all others alone."
        ),
    ] = "keep",
    requests: Annotated[
        Optional[Path], typer.Option(help="With --gguf: the edit requests; how many of them its numbers lose is told.")
    ] = None,
    history: Annotated[Optional[Path], typer.Option(help="With --gguf: the history that holds them.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Add an adapter to its base model and write a checkpoint that needs neither PEFT nor this package."""
    inputs: dict[str, Given] = {"adapter": adapter, "model": model, "gguf": gguf}
    inputs |= {"requests": requests, "history": history}
    require_outputs(folders={"out": out}, inputs=inputs, overwrite=overwrite)
    if gguf is not None:
        _into_gguf(adapter, model, out, dtype, gguf, quantization, requests, history, overwrite, json_output)
        return
    for name, given in (("requests", requests), ("history", history)):
        if given is not None:
            raise ValueError(f"{name}: acts together with --gguf alone, to measure which edits it loses")
    if quantization != "keep":
        raise ValueError("quantization: acts together with --gguf alone, the GGUF of the base")
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


def _into_gguf(
    adapter: Path,
    model: str,
    out: Path,
    dtype: str,
    gguf: Path,
    quantization: str,
    requests: Path | None,
    history: Path | None,
    overwrite: bool,
    json_output: bool,
) -> None:
    require_quantization(quantization)
    if dtype != "auto":
        raise ValueError("dtype: does not go with --gguf, whose types --quantization chooses")
    asked = edits_asked(requests, history)
    edited = load_adapter(load_model(model, "auto"), adapter)
    done = merge_into_gguf(edited, gguf, out, quantization=quantization, overwrite=overwrite)
    lost = None
    if requests is not None or history is not None:
        places = lost_in_gguf(edited, load_tokenizer(model), asked, done.file)
        lost = lost_of(asked, places)
    if json_output:
        said = {"checkpoint": str(done.file), "adapter": str(adapter), "restraint_applied": done.restraint_applied}
        print_json({**said, "types": dict(done.types), "modules": list(done.modules), "lost": lost})
    else:
        _tell(done, lost, len(asked))


def _tell(done: MergedGguf, lost: list[dict[str, Any]] | None, asked: int) -> None:
    types = ", ".join(f"{count} {name}" for name, count in done.types.items())
    applied = ", the pending restraint applied first" if done.restraint_applied else ""
    say(f"Merged GGUF in {done.file} ({types}){applied}")
    tell_lost(lost, asked, "in it")
