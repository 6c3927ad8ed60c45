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
from .state import Around


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
        self._projected: ProjectedUpdate | None = None
        self._reference: Reference | None = None
        self._mark: Any = None  # of the sum that the reference belongs to
        self._known: dict[str, Any] = {}

    def of(self, update: LowRankUpdate, key: Any, around: tuple[Around, LowRankUpdate] | None = None) -> LayerFigures:
        """The figures of this update.

        Args:
            update: The effective update.
            key: Tells it from others; None for one that is not known to be the same as the last.
            around: A sum and what the update has more than that, of low rank.
        """
        if self._update is None or key is None or key != self._key:
            self._key, self._known = key, {}
            if around is None:
                self._update, self._reference, self._mark = update, None, None
            else:
                self._refer(around[0])
                self._update = around[1]
        return self

    def _refer(self, around: Around) -> None:
        """Take the figures around this sum; moved there from the last one, where it is known by how much."""
        if self._reference is not None and around.mark is self._mark:
            return
        found = None
        if self._reference is not None and around.moved is not None and around.before is self._mark:
            found = self._reference.moved(around.moved)
        self._reference, self._mark = found or Reference(self.base, around.sum), around.mark

    @property
    def condition(self) -> ConditionReport:
        """Extreme singular values and κ of W₀ + ΔW."""
        if (reference := self._reference) is not None:
            return self._once("condition", lambda: reference.condition(self._update))
        return self._once("condition", lambda: self.base.of(self._project()))

    @property
    def spectral_norm(self) -> float:
        """‖ΔW‖₂, to a relative error of 1e-4."""
        if (reference := self._reference) is not None:
            return self._once("spectral_norm", lambda: reference.spectral_norm(self._update))
        return self._once("spectral_norm", lambda: self.base.spectral_norm(self._project()))

    @property
    def energies(self) -> Tensor:
        """‖qᵢᵀ ΔW‖² for the singular vectors of W₀ on its shorter side, as `ConditionNumber.energies`."""
        if (reference := self._reference) is not None:
            return self._once("energies", lambda: reference.energies(self._update))
        return self._once("energies", lambda: self.base.energies(self._project()))

    def output_perturbation(self, output: OutputPerturbation) -> float:
        """Mean squared change of the output over the mean squared output."""
        dense = None if self._reference is None else self._reference.dense
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
