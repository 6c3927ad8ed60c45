"""The part of a saved adapter's card that says how large the update of each layer is, and what it does to κ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..cards import write_section
from ..spectral import LowRankUpdate
from .header import name_in_base
from .layer import PruneEditLayer

SECTION = "layers"


@dataclass(frozen=True)
class BaseFigures:
    """What is known of a layer's base weight when an adapter is saved.

    Args:
        sigma_max: σmax(W₀); None where nothing has needed it yet.
        condition_base: κ(W₀); None where no monitor has factored W₀.
        condition: κ(W₀ + ΔW), likewise.
    """

    sigma_max: float | None = None
    condition_base: float | None = None
    condition: float | None = None


def base_figures(layers: Iterable[tuple[str, PruneEditLayer]], adapter_name: str) -> dict[str, BaseFigures]:
    """What has been computed already, by the layer's name in the base; saving factors no W₀."""
    return {name_in_base(name): _known(layer, adapter_name) for name, layer in layers}


def _known(layer: PruneEditLayer, adapter_name: str) -> BaseFigures:
    largest, condition = layer.known_base()
    if condition is None:
        return BaseFigures(largest)
    found = layer.figures(adapter_name).condition
    return BaseFigures(condition.sigma_max, condition.condition_number, found.condition_number)


def write_layers(
    path: Path,
    updates: Mapping[str, LowRankUpdate],
    known: Mapping[str, BaseFigures] | None = None,
    section: str = SECTION,
) -> None:
    """Write the table of the layers into a card.

    Args:
        path: The card's file.
        updates: Of every layer, as it is saved, by its name in the base; layers without edits are left out.
        known: What is known of their base weights.
        section: Name of the section.

    Raises:
        ValueError: A factor holds NaN or Inf.
    """
    found = {name: (known or {}).get(name, BaseFigures()) for name, update in updates.items() if update.rank}
    lines = ["## The size of the update", "", "| layer | rank | ‖ΔW‖_F | ‖ΔW‖₂ | ‖ΔW‖₂ / σmax(W₀) | κ(W₀) | κ(W₀+ΔW) |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, base in found.items():
        norm = updates[name].spectral_norm()
        relative = norm / base.sigma_max if base.sigma_max else None
        shown = (updates[name].frobenius_norm(), norm, relative, base.condition_base, base.condition)
        lines.append(f"| `{name}` | {updates[name].rank} | " + " | ".join(map(_number, shown)) + " |")
    if any(base.condition is None for base in found.values()):
        lines += ["", "–: not computed before it was saved; `peft_prune.layer_conditions(model)` computes it."]
    if found:
        write_section(path, section, "\n".join(lines))


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if math.isfinite(value) else "∞"
