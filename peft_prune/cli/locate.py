"""`peft-prune locate`: trace where a model keeps its facts, and suggest the layers to edit."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..outputs import require_outputs
from ..requests import EditRequest
from .options import Dtype, GgufFile, JsonOutput
from .placement import Placement, placed
from .places import in_gguf
from .plain import say, shows_progress
from .requested import OnBadRecord, fitting, requested

if TYPE_CHECKING:
    from ..editors.locate import Location


@placed
def locate(
    model: Annotated[str, typer.Option(help="Model to trace: a folder or a Hub name.")],
    requests: Annotated[
        Path, typer.Option(help="Requests with target_true; facts that the model does not know are left out.")
    ],
    limit: Annotated[Optional[int], typer.Option(help="Use the first so many requests only.")] = 30,
    on_bad_record: OnBadRecord = "fail",
    plot: Annotated[Optional[Path], typer.Option(help="PNG to draw the effects into.")] = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = "float32",
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Trace facts through the layers and suggest which to edit."""
    from ..editors.locate import locate as trace
    from ..reporting.plots import plot_location, require_picture
    from .models import load_model, load_tokenizer, print_json

    model = in_gguf(model, gguf_file)
    if plot is not None:
        require_outputs(files={"plot": plot}, inputs={"model": model, "requests": requests})
        require_picture(plot)
    given = requested(requests, limit, on_bad_record)
    tokenizer, base = load_tokenizer(model), load_model(model, dtype, placement)
    facts = fitting(requests, given, base, tokenizer, _require_traceable).requests
    found = trace(base, tokenizer, facts, progress=shows_progress(json_output))
    if plot is not None:
        plot_location(found, plot)
    if json_output:
        print_json({**asdict(found), "layer": found.layer, "layers": list(found.layers)})
    else:
        _print(found)


def _require_traceable(model: Any, tokenizer: Any, fact: EditRequest) -> None:
    from ..session.verification import require_editable

    fact.with_subject()  # it is at its last token that facts are traced
    require_editable(model, tokenizer, replace(fact, target_new=fact.target_true or fact.target_new))


def _print(found: Location) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"Probability restored at the subject's last token, {found.facts} facts")
    table.add_column("layer", justify="right")
    table.add_column(f"{found.window} MLP outputs around it", justify="right")
    table.add_column("block output", justify="right")
    for layer, (mlp, block) in enumerate(zip(found.mlp, found.block, strict=True)):
        around = "–" if math.isnan(mlp) else f"{mlp:+.4f}"
        table.add_row(str(layer), around, f"{block:+.4f}", style="bold" if layer in found.layers else None)
    console.print(table)
    say(f"The object has {found.clean:.3f}, with noise on the subject {found.corrupted:.3f}.")
    say(f"Suggested: --layers {found.layer} for ROME, {','.join(map(str, found.layers))} for MEMIT")
