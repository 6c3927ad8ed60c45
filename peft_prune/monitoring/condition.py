"""Condition number, norms and perturbations of every edited layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from peft import PeftModel
from torch import Tensor

from ..tuner import PruneEditLayer, PruneEditModel

CONDITION_GROWTH = "condition_growth"
"""Name of κ(W0 + ΔW) / κ(W0), the largest over the layers."""

UPDATE_NORM = "update_norm"
"""Name of ‖ΔW‖₂ / σmax(W0), the largest over the layers."""

OUTPUT_PERTURBATION = "output_perturbation"
"""Name of tr(ΔW C ΔWᵀ) / tr(W0 C W0ᵀ), the largest over the layers."""

LAYER_FIGURES = {CONDITION_GROWTH: 1.0, UPDATE_NORM: 0.0, OUTPUT_PERTURBATION: 0.0}
"""Figures of a layer that a limit can be set for, with their value in an unedited one."""

SUBSPACE = 0.1
"""Share of the base's singular directions that counts as its top, and as its bottom."""


@dataclass(frozen=True)
class LayerCondition:
    """Spectral figures of one layer with its effective update ΔW.

    Args:
        edits: Edits in the accumulated update.
        rank: Rank of the effective factors.
        sigma_max_base: σmax(W0).
        delta_spectral_norm: ‖ΔW‖₂.
        delta_frobenius_norm: ‖ΔW‖_F.
        condition_number_base: κ(W0) = σmax(W0) / σmin(W0).
        condition_number: κ(W0 + ΔW), whose growth bounds what a perturbation of the input does (Ma et al. 2025,
            section 3).
        perturbation_bound: κ(W) ‖ΔW‖₂ / ‖W‖₂ with W = W0 + ΔW. Let W0 x = b; the x + δ that gives the same b after the
            edits has ‖δ‖ ≤ bound · ‖x‖, since W δ = -ΔW x. It is the perturbation bound of linear systems (Wedin 1973)
            that Ma et al. 2025, section 3 build on, in the form that holds for any size of ΔW; inf for a singular W.
        output_perturbation: tr(ΔW C ΔWᵀ) / tr(W0 C W0ᵀ), the mean squared change of the output on ordinary inputs over
            the mean squared output; None where no second moment C of the layer is known.
        energy_top: Share of ‖ΔW‖_F² in the singular directions of W0's largest tenth of singular values, on its shorter
            side; 0 for ΔW = 0.
        energy_bottom: The same for the smallest tenth.
    """

    edits: int
    rank: int
    sigma_max_base: float
    delta_spectral_norm: float
    delta_frobenius_norm: float
    condition_number_base: float
    condition_number: float
    perturbation_bound: float
    output_perturbation: float | None
    energy_top: float
    energy_bottom: float

    @property
    def growth(self) -> float:
        """κ(W0 + ΔW) / κ(W0); 1 where both are infinite."""
        if math.isinf(self.condition_number_base):
            return 1.0
        return self.condition_number / self.condition_number_base

    @property
    def relative_norm(self) -> float:
        """‖ΔW‖₂ / σmax(W0); also of use where κ(W0) is infinite."""
        if self.sigma_max_base == 0:
            return math.inf if self.delta_spectral_norm > 0 else 0.0
        return self.delta_spectral_norm / self.sigma_max_base

    def value(self, figure: str) -> float | None:
        """One of `LAYER_FIGURES`; None for an output perturbation that is not known."""
        if figure == CONDITION_GROWTH:
            return self.growth
        return self.relative_norm if figure == UPDATE_NORM else self.output_perturbation


class Monitor:
    """Takes the figures of every adapted layer; a layer keeps what the next time, or the schedule, can be spared.

    The first figures of a layer factor W0 W0ᵀ on its smaller side n, in float64, and keep it: n² · 8 bytes.

    Args:
        model: A PEFT model with a PRUNE_EDIT adapter, or the tuner itself.
        moments: Second moments C by module name, for the output perturbation.
        adapter_name: The adapter; the active one if not given.
    """

    def __init__(
        self,
        model: PeftModel | PruneEditModel,
        moments: Mapping[str, Tensor] | None = None,
        adapter_name: str | None = None,
    ) -> None:
        self._model = model
        self._adapter = model.one_adapter(adapter_name)
        model.set_second_moments(moments or {}, self._adapter)

    def figures(self) -> dict[str, LayerCondition]:
        """The figures of every layer as it is now, by module name."""
        return {name: self._layer(layer) for name, layer in self._model.edited_layers(self._adapter)}

    def _layer(self, layer: PruneEditLayer) -> LayerCondition:
        base, own = layer.condition(), layer.figures(self._adapter)
        report, norm, energies = own.condition, own.spectral_norm, own.energies
        total = float(energies.sum())
        count = math.ceil(SUBSPACE * len(energies))
        return LayerCondition(
            edits=layer.prune_edit_update[self._adapter].edits,
            rank=layer.rank(self._adapter),
            sigma_max_base=base.sigma_max,
            delta_spectral_norm=norm,
            delta_frobenius_norm=math.sqrt(total),
            condition_number_base=base.condition_number,
            condition_number=report.condition_number,
            perturbation_bound=norm / report.sigma_min if report.sigma_min > 0 else math.inf,
            output_perturbation=layer.output_perturbation(self._adapter),
            energy_top=float(energies[-count:].sum()) / total if total > 0 else 0.0,
            energy_bottom=float(energies[:count].sum()) / total if total > 0 else 0.0,
        )


def layer_conditions(model: PeftModel | PruneEditModel, adapter_name: str | None = None) -> dict[str, LayerCondition]:
    """Figures of every layer that this adapter (the active one if not given) adapts, by module name."""
    return Monitor(model, adapter_name=adapter_name).figures()
