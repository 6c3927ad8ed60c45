"""`peft-prune diff`: what two adapters have in common, and what they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .compose import source_of
from .options import JsonOutput
from .plain import plain, say

if TYPE_CHECKING:
    from ..session import AdapterComparison, EditRecord
    from ..spectral import Comparison

SAME_DIRECTION = 0.99
"""Cosine of a principal angle from which on two directions count as one in the table."""


def diff(
    one: Annotated[str, typer.Argument(help="Folder of an adapter, file of a history, or name on the Hub.")],
    other: Annotated[str, typer.Argument(help="The same.")],
    json_output: JsonOutput = False,
) -> None:
    """Compare two adapters of one base: the directions of their updates, and the edits of their histories."""
    from rich.console import Console
    from rich.table import Table

    from ..session import compare_adapters
    from .models import print_json

    found = compare_adapters(source_of(one), source_of(other))
    if json_output:
        print_json(_document(one, other, found))
        return
    table = Table(title=plain(f"{one} and {other}"))
    for column in ("layer", "ranks", "‖ΔW‖_F", "difference", "cosine", "shared outputs", "shared inputs", "inside"):
        table.add_column(column, overflow="fold")
    for name, layer in found.layers.items():
        cells = (
            name,
            "{} | {}".format(*layer.ranks),
            "{:.3g} | {:.3g}".format(*layer.norms),
            f"{layer.difference:.3g}",
            f"{layer.cosine:.2f}",
            f"{int((layer.outputs >= SAME_DIRECTION).sum())} of {layer.outputs.numel()}",
            f"{int((layer.inputs >= SAME_DIRECTION).sum())} of {layer.inputs.numel()}",
            "{:.0%} | {:.0%}".format(*layer.shared),
        )
        table.add_row(*map(plain, cells))
    Console().print(table)
    if found.raw[0] != found.raw[1]:
        say("one is the raw sum and the other restrained, so they differ by the restraint as well")
    if found.edits is None:
        return
    edits = found.edits
    say(
        f"edits: {len(edits.first_alone)} in the first alone, {len(edits.second_alone)} in the second alone, "
        f"{len(edits.shared)} in both, {len(edits.conflicts)} in conflict"
    )
    for conflict in edits.conflicts:
        say(f"conflict: {conflict}")


def _document(one: str, other: str, found: AdapterComparison) -> dict[str, Any]:
    edits = found.edits
    return {
        "adapters": [one, other],
        "raw": list(found.raw),
        "layers": {name: _figures(layer) for name, layer in found.layers.items()},
        "edits": None
        if edits is None
        else {
            "first_alone": [_edit(record) for record in edits.first_alone],
            "second_alone": [_edit(record) for record in edits.second_alone],
            "shared": [[_edit(record) for record in pair] for pair in edits.shared],
            "conflicts": [[_edit(pair.first), _edit(pair.second)] for pair in edits.conflicts],
        },
    }


def _figures(layer: Comparison) -> dict[str, Any]:
    return {
        "ranks": list(layer.ranks),
        "frobenius_norms": list(layer.norms),
        "difference": layer.difference,
        "cosine": layer.cosine,
        "output_cosines": layer.outputs.tolist(),
        "input_cosines": layer.inputs.tolist(),
        "shared": list(layer.shared),
    }


def _edit(record: EditRecord) -> dict[str, Any]:
    request = record.request
    assert request is not None  # what stands was a request
    return {"id": record.id, "subject": request.subject, "prompt": request.prompt, "target_new": request.target_new}
