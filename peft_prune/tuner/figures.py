"""Spectral figures of one adapter in one layer: computed when asked for, kept while its factors stay what they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..spectral import (
    ConditionNumber,
    ConditionReport,
    LowRankUpdate,
    OutputPerturbation,
    ProjectedUpdate,
    Reference,
)


class LayerFigures:
    """What the threshold schedule and the monitor look at; what one has computed the other does not compute again.

    Products with W₀ and with the second moment are kept for the columns that the next update shares with this one.
    Where the rank is no longer small and it is known how the update has changed since an earlier moment, they are taken
    around the sum of that moment, so that they cost no more than they did at a small rank.

    Args:
        base: κ of W₀ and of W₀ + ΔW.
    """

    def __init__(self, base: ConditionNumber) -> None:
        self.base = base
        self._key: Any = None
        self._update: Any = None
        self._around: LowRankUpdate | None = None
        self._projected: ProjectedUpdate | None = None
        self._reference: Any = None  # a sum and its `Reference`
        self._known: dict[str, Any] = {}

    def of(
        self, update: LowRankUpdate, key: Any, around: tuple[LowRankUpdate, LowRankUpdate] | None = None
    ) -> LayerFigures:
        """The figures of this update.

        Args:
            update: The effective update.
            key: Tells it from others; None for one that is not known to be the same as the last.
            around: A sum and what the update has more than that, of low rank.
        """
        if self._update is None or key is None or key != self._key:
            self._key, self._known = key, {}
            self._around, self._update = (None, update) if around is None else around
            if self._around is None:
                self._reference = None
            elif self._reference is None or self._reference[0] is not self._around:
                self._reference = (self._around, Reference(self.base, self._around))
        return self

    @property
    def condition(self) -> ConditionReport:
        """Extreme singular values and κ of W₀ + ΔW."""
        if self._reference is not None:
            return self._once("condition", lambda: self._reference[1].condition(self._update))
        return self._once("condition", lambda: self.base.of(self._project()))

    @property
    def spectral_norm(self) -> float:
        """‖ΔW‖₂, to a relative error of 1e-4."""
        if self._reference is not None:
            return self._once("spectral_norm", lambda: self._reference[1].spectral_norm(self._update))
        return self._once("spectral_norm", lambda: self.base.spectral_norm(self._project()))

    @property
    def energies(self) -> Tensor:
        """‖qᵢᵀ ΔW‖² for the singular vectors of W₀ on its shorter side, as `ConditionNumber.energies`."""
        if self._reference is not None:
            return self._once("energies", lambda: self._reference[1].energies(self._update))
        return self._once("energies", lambda: self.base.energies(self._project()))

    def output_perturbation(self, output: OutputPerturbation) -> float:
        """Mean squared change of the output over the mean squared output."""
        dense = None if self._reference is None else self._reference[1].dense
        return self._once("output", lambda: output.of(self._update, dense))

    def _project(self) -> ProjectedUpdate:
        if "projected" not in self._known:
            self._projected = self.base.project(self._update, self._projected)
            self._known["projected"] = True
        assert self._projected is not None
        return self._projected

    def _once(self, name: str, compute: Any) -> Any:
        if name not in self._known:
            self._known[name] = compute()
        return self._known[name]
