"""`peft-prune merge`: write a plain checkpoint with the edits in its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import MergeError
from ..evaluation.merging import MergeReport, merge_report
from ..folders import whole_folder
from ..outputs import Given, require_outputs
from ..requests import load_requests
from .models import companions, load_adapter, load_model, load_tokenizer, print_json
from .placement import Placement, placed


@placed
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter, or user/name[@revision] on the Hub.")],
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hub name; the full-precision one, at best.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    dtype: Annotated[str, typer.Option(help="Dtype of the checkpoint; 'auto' keeps the base's.")] = "auto",
    requests: Annotated[
        Optional[Path], typer.Option(help="Edits to ask for before and after the merge; one that is lost is an error.")
    ] = None,
    requantize: Annotated[
        bool, typer.Option(help="Quantize merged weights of a quantized base anew, instead of dequantizing it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    *,
    placement: Placement,
) -> None:
    """Add an adapter to its base model, measure what arrives, and write a checkpoint that needs no adapter."""
    inputs: dict[str, Given] = {"adapter": adapter, "model": model, "requests": requests}
    require_outputs(folders={"out": out}, inputs=inputs, overwrite=overwrite)
    asked = [] if requests is None else load_requests(requests)
    tokenizer = load_tokenizer(model)
    edited = load_adapter(load_model(model, dtype, placement), adapter)
    beside = companions(model)
    pending = edited.restraint_is_pending()
    found = merge_report(edited, tokenizer, asked, requantize=requantize)
    if found.lost:
        lost = ", ".join(repr(asked[index].subject) for index in found.lost[:3])
        raise MergeError(
            f"merge: {len(found.lost)} of {sum(found.held_before)} edits that hold would be lost ({lost}), merged into "
            f"{found.into} weights; merge into the full-precision base, or leave the adapter unmerged"
        )
    with whole_folder(out, overwrite=overwrite) as folder:
        merged = edited.merge_and_unload(safe_merge=True, progressbar=not json_output, requantize=requantize)
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
    typer.echo(f"Merged checkpoint in {out}" + (", the pending restraint applied first" if pending else ""))
    _print(found)


def _print(found: MergeReport) -> None:
    if found.base != "plain":
        typer.echo(f"The base is quantized ({found.base}); merged into {found.into} weights")
    for name, figure in found.layers.items():
        typer.echo(f"{name}: {figure.share:.1%} of ΔW arrived, error {figure.error:.2g} ‖ΔW‖")
    if found.held_before:
        typer.echo(
            f"Edits that hold: {sum(found.held_before)} before, {sum(found.held_after)} after, of "
            f"{len(found.held_before)}; logits moved by {found.logit_drift:.2g} of their norm"
        )
