"""`peft-prune merge`: write a plain checkpoint, or a GGUF, with the edits in its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..folders import whole_folder
from ..outputs import Given, require_outputs
from .options import GgufFile, JsonOutput, Overwrite
from .placement import Placement, placed
from .places import in_gguf
from .plain import close_with, say
from .requested import edits_asked, lost_of, tell_lost

if TYPE_CHECKING:
    from ..evaluation import MergeReport
    from ..export import MergedGguf


@placed
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter, or user/name[@revision] on the Hub.")],
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hub name; the full-precision one, at best.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    gguf_file: GgufFile = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the checkpoint; 'auto' keeps the base's.")] = "auto",
    requests: Annotated[
        Optional[Path],
        typer.Option(help="Edits to ask for before and after the merge; one that a checkpoint loses is an error."),
    ] = None,
    history: Annotated[Optional[Path], typer.Option(help="The history that holds them, in place of a file.")] = None,
    requantize: Annotated[
        bool, typer.Option(help="Quantize merged weights of a quantized base anew, instead of dequantizing it.")
    ] = False,
    gguf: Annotated[
        Optional[Path],
        typer.Option(help="A GGUF of the base: write a GGUF with the edits in place of the checkpoint."),
    ] = None,
    gguf_type: Annotated[
        str,
        typer.Option(
            help="With --gguf: f16, q8_0 or q4_0; keep gives the edited tensors Q8_0 and leaves all others alone."
        ),
    ] = "keep",
    overwrite: Overwrite = False,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Add an adapter to its base model, measure what arrives, and write a checkpoint that needs no adapter."""
    from ..evaluation.merging import merge_measured
    from .models import companions, load_adapter, load_model, load_tokenizer, print_json

    model = in_gguf(model, gguf_file)
    inputs: dict[str, Given] = {"adapter": adapter, "model": model, "gguf": gguf}
    inputs |= {"requests": requests, "history": history}
    require_outputs(folders={"out": out}, inputs=inputs, overwrite=overwrite)
    if gguf is not None:
        if requantize or placement.quantization is not None:
            raise ValueError(
                "gguf: is written from a base in full precision; leave --quantization and --requantize out"
            )
        _into_gguf(adapter, model, out, dtype, gguf, gguf_type, requests, history, overwrite, json_output)
        return
    if gguf_type != "keep":
        raise ValueError("gguf_type: acts together with --gguf alone, the GGUF of the base")
    asked = edits_asked(requests, history)
    tokenizer = load_tokenizer(model)
    edited = load_adapter(load_model(model, dtype, placement), adapter)
    beside = companions(model)
    pending = edited.restraint_is_pending()
    with whole_folder(out, overwrite=overwrite) as folder:
        merged, found = merge_measured(edited, tokenizer, asked, requantize=requantize)
        merged.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        for file, name in beside:
            if not (folder / name).exists():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, folder / name)
    if json_output:
        print_json(
            {"checkpoint": str(out), "adapter": str(adapter), "restraint_applied": pending, "merge": found.as_dict()}
        )
        return
    close_with(f"Merged checkpoint in {out}" + (", the pending restraint applied first" if pending else ""))
    _print(found)


def _print(found: MergeReport) -> None:
    if found.base != "plain":
        say(f"The base is quantized ({found.base}); merged into {found.into} weights")
    for name, figure in found.layers.items():
        say(f"{name}: {figure.share:.1%} of ΔW arrived, error {figure.error:.2g} ‖ΔW‖")
    if found.held_before:
        say(
            f"Edits that hold: {sum(found.held_before)} before, {sum(found.held_after)} after, of "
            f"{len(found.held_before)}; logits moved by {found.logit_drift:.2g} of their norm"
        )


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
    from ..export import lost_in_gguf, merge_into_gguf, require_quantization
    from .models import load_adapter, load_model, load_tokenizer, print_json

    require_quantization(quantization)
    if dtype != "auto":
        raise ValueError("dtype: does not go with --gguf, whose types --gguf-type chooses")
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
