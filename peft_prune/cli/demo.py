"""`peft-prune demo`: sixty edits into the built-in model, or thirty into a real one: raw, restrained, consolidated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..folders import whole_folder
from ..outputs import require_outputs
from .options import JsonOutput
from .places import BUILTIN
from .plain import close_with

MARK = "demo.json"
EDITS: Mapping[bool, int] = {True: 60, False: 30}
ALPHA: Mapping[bool, float] = {True: 1.5, False: 1.2}
"""Number of edits and base of the logarithm for the built-in model, and for a real one."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the adapter, the figure and the numbers.")] = Path(
        "demo-output"
    ),
    model: Annotated[
        str, typer.Option(help="'builtin', or a real model from a package of PyPI: smollm2 or gemma3.")
    ] = BUILTIN,
    requests: Annotated[
        Optional[Path],
        typer.Option(help="For a real model: facts to change, such as examples/facts.jsonl; the rest are to stand."),
    ] = None,
    text: Annotated[Optional[Path], typer.Option(help="For a real model: texts for perplexity.")] = None,
    edits: Annotated[
        Optional[int], typer.Option(help="Number of sequential edits; 60, or 30 of a real model, if not given.")
    ] = None,
    alpha: Annotated[
        Optional[float],
        typer.Option(help="Base of the restraint's logarithm, above 1; 1.5, or 1.2 of a real model, if not given."),
    ] = None,
    items: Annotated[int, typer.Option(help="For the built-in model: items of each ability in the table.")] = 60,
    json_output: JsonOutput = False,
) -> None:
    """Edit the built-in model or a real one, restrain the accumulated update, consolidate it, and compare."""
    from rich.console import Console

    from ..builtin import builtin_model_path
    from .builtin_demo import run_builtin
    from .models import print_json
    from .real_demo import require_real, run_real

    builtin = model == BUILTIN
    edits, alpha = EDITS[builtin] if edits is None else edits, ALPHA[builtin] if alpha is None else alpha
    if edits < 1 or items < 1:
        raise ValueError(f"edits: {edits} and items: {items} must be at least 1")
    console = Console(quiet=json_output)
    ours = (out / MARK).is_file()
    inputs = {"built-in model": builtin_model_path(), "requests": requests, "texts": text}
    require_outputs(folders={"out": out}, inputs=inputs, overwrite=ours)
    if builtin and (requests is not None or text is not None):
        raise ValueError("requests: the built-in model brings its own; they go with --model smollm2")
    given = None if builtin else require_real(model, requests, text, edits)
    with whole_folder(out, overwrite=ours) as folder:
        if given is None:
            made = run_builtin(folder, edits, alpha, items, console)
        else:
            made = run_real(folder, given, alpha, console)
        (folder / MARK).write_text(json.dumps(made, indent=2))
    if json_output:
        print_json(made)
    else:
        close_with(f"Adapter, figure and numbers in {out}")
        close_with(f"Next, ask it yourself:\n  {_next(model, out, made)}")


def _next(model: str, out: Path, made: Mapping[str, Any]) -> str:
    """The command that shows an edit before and after."""
    from shlex import join

    return join(["peft-prune", "ask", model, str(out / "adapter"), made["ask"]])
