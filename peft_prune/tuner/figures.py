"""Spectral figures of one adapter in one layer: computed when asked for, kept while its factors stay what they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..spectral import ConditionNumber, ConditionReport, LowRankUpdate, OutputPerturbation, ProjectedUpdate


class LayerFigures:
    """What the threshold schedule and the monitor look at; what one has computed the other does not compute again.

    Products with W₀ and with the second moment are kept for the columns that the next update shares with this one.

    Args:
        base: κ of W₀ and of W₀ + ΔW.
    """

    def __init__(self, base: ConditionNumber) -> None:
        self.base = base
        self._key: Any = None
        self._update: LowRankUpdate | None = None
        self._projected: ProjectedUpdate | None = None
        self._known: dict[str, Any] = {}

    def of(self, update: LowRankUpdate, key: Any) -> LayerFigures:
        """The figures of this update; ``key`` tells it from others."""
        if self._update is None or key is None or key != self._key:
            self._update, self._key, self._known = update, key, {}
        return self

    @property
    def condition(self) -> ConditionReport:
        """Extreme singular values and κ of W₀ + ΔW."""
        return self._once("condition", lambda: self.base.of(self._project()))

    @property
    def spectral_norm(self) -> float:
        """‖ΔW‖₂, to a relative error of 1e-4."""
        return self._once("spectral_norm", lambda: self.base.spectral_norm(self._project()))

    @property
    def energies(self) -> Tensor:
        """‖qᵢᵀ ΔW‖² for the singular vectors of W₀ on its shorter side, as `ConditionNumber.energies`."""
        return self._once("energies", lambda: self.base.energies(self._project()))

    def output_perturbation(self, output: OutputPerturbation) -> float:
        """Mean squared change of the output over the mean squared output."""
        assert self._update is not None
        return self._once("output", lambda: output.of(self._update))

    def _project(self) -> ProjectedUpdate:
        assert self._update is not None
        if "projected" not in self._known:
            self._projected = self.base.project(self._update, self._projected)
            self._known["projected"] = True
        assert self._projected is not None
        return self._projected

    def _once(self, name: str, compute: Any) -> Any:
        if name not in self._known:
            self._known[name] = compute()
        return self._known[name]
