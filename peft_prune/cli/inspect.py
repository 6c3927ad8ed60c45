"""`peft-prune inspect`: what a saved adapter is, from its files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JsonOutput
from .plain import plain, say

if TYPE_CHECKING:
    from ..spectral import LowRankUpdate

NEEDS_BASE = "κ(W₀+ΔW), and ‖ΔW‖ against σmax(W₀), need the base:\n  peft-prune evaluate, or peft-prune report --model"


def inspect(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter, or user/name[@revision] on the Hub.")],
    json_output: JsonOutput = False,
) -> None:
    """Tell what a saved adapter holds, from its files alone: neither the base nor a history is needed."""
    from ..hub import adapter_folder
    from ..reporting.adapter_page import read_adapter
    from .models import print_json

    folder = adapter_folder(adapter)
    found = told(str(adapter), *read_adapter(folder))
    if json_output:
        print_json(found)
    else:
        _print(found)


def told(place: str, config: Mapping[str, Any], updates: Mapping[str, LowRankUpdate]) -> dict[str, Any]:
    """What the files of an adapter say; null stands for what they do not hold.

    Args:
        place: What the adapter was asked for by.
        config: Its configuration.
        updates: Its factors by module.
    """
    from ..models.fingerprint import short_form

    fingerprint = config.get("base_fingerprint")
    return {
        "adapter": place,
        "base": config.get("base_model_name_or_path"),
        "base_fingerprint": None if fingerprint is None else short_form(fingerprint),
        "edits": config.get("edits"),
        "restraint": {
            "form": config.get("restraint"),
            "alpha": config.get("alpha") if config.get("restraint") == "log" else None,
            "by_layer": config.get("restraint_pattern"),
            "applied": config.get("restrained"),
            "schedule": config.get("restrain_on"),
        },
        "beneath": config.get("beneath"),
        "layers": {name: _figures(update) for name, update in updates.items()},
    }


def _figures(update: LowRankUpdate) -> dict[str, Any]:
    values = update.singular_values()
    energy = float((values**2).sum())
    return {
        "shape": [update.B.shape[0], update.A.shape[1]],
        "dtype": str(update.B.dtype).removeprefix("torch."),
        "rank": update.rank,
        "spectral_norm": float(values[0]) if len(values) else 0.0,
        "frobenius_norm": update.frobenius_norm(),
        # how many equal directions would have the same share of the largest
        "stable_rank": energy / float(values[0]) ** 2 if energy else 0.0,
        "condition_number": None,
    }


def _print(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    restraint = found["restraint"]
    lines = {
        "base": found["base"] or "not named in the files",
        "fingerprint": found["base_fingerprint"] or "none in the files",
        "edits": "not counted in the files" if found["edits"] is None else str(found["edits"]),
        "restraint": _restraint(restraint),
    }
    if found["beneath"]:
        lines["beneath"] = ", ".join(found["beneath"])
    for name, text in lines.items():
        say(f"{name:<13}{text}")
    table = Table(title=plain(found["adapter"]))
    table.add_column("layer", overflow="fold")
    for heading in ("shape", "rank", "stable rank", "‖ΔW‖₂", "‖ΔW‖_F"):
        table.add_column(heading, justify="right")
    for name, one in found["layers"].items():
        figures = (one["stable_rank"], one["spectral_norm"], one["frobenius_norm"])
        shape = "{} × {}".format(*one["shape"])
        table.add_row(plain(name), shape, str(one["rank"]), *(f"{value:.3g}" for value in figures))
    Console().print(table)
    for line in NEEDS_BASE.splitlines():
        say(line)


def _restraint(restraint: Mapping[str, Any]) -> str:
    if restraint["form"] == "none":
        return "none"
    alpha = "" if restraint["alpha"] is None else f" with α = {restraint['alpha']:g}"
    own = ", some layers by their own" if restraint["by_layer"] else ""
    return f"{restraint['form']}{alpha}{own}, {'applied' if restraint['applied'] else 'not applied'} to these factors"
