"""Condition number and norms of every edited layer."""

from __future__ import annotations

from dataclasses import dataclass

from ..tuner import PruneEditModel


@dataclass(frozen=True)
class LayerCondition:
    """Spectral figures of one layer with its effective update ΔW.

    Args:
        rank: Rank of the effective factors.
        sigma_max_base: σmax(W0).
        delta_spectral_norm: ‖ΔW‖₂.
        condition_number_base: κ(W0) = σmax(W0) / σmin(W0).
        condition_number: κ(W0 + ΔW), whose growth bounds what a perturbation of the input does (Ma et al. 2025,
            section 3).
    """

    rank: int
    sigma_max_base: float
    delta_spectral_norm: float
    condition_number_base: float
    condition_number: float


def layer_conditions(model: PruneEditModel, adapter_name: str | None = None) -> dict[str, LayerCondition]:
    """Figures of every layer that this adapter (the active one if not given) adapts, by module name.

    The first call for a layer factors W0 W0ᵀ on its smaller side n, in float64, and keeps it: n² · 8 bytes.
    """
    adapter_name = model.one_adapter(adapter_name)
    return {
        name: LayerCondition(
            rank=layer.rank(adapter_name),
            sigma_max_base=layer.condition().sigma_max,
            delta_spectral_norm=layer.effective_update(adapter_name).spectral_norm(),
            condition_number_base=layer.condition().condition_number,
            condition_number=layer.condition().of(layer.effective_update(adapter_name)).condition_number,
        )
        for name, layer in model.edited_layers(adapter_name)
    }
