"""EMMET: a batch of facts by equality constraints, ROME's objective for many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..models.decoder import hidden_size
from .base import Prepared, register_editor
from .closed_form import KeySystem, equality_rows, moment_inverse
from .spread import SMALL_VALUES, SMALL_WIDTH, SpreadEditor, SpreadHyperparameters


@dataclass(frozen=True)
class EMMETHyperparameters(SpreadHyperparameters):
    """Defaults are those of the authors' file for GPT-2 XL, but for the stopping rule.

    Args:
        mom2_update_weight: λ of C in the constraint's metric; it matters against ``ridge`` alone.
        mom2_shrinkage: Multiple of the second moment's mean diagonal that is added to its diagonal.
        ridge: α, added to the diagonal of Kᵀ (λC)⁻¹ K for batches whose keys nearly depend on each other.
    """

    mom2_update_weight: float = 1.0
    mom2_shrinkage: float = 0.0
    ridge: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mom2_update_weight > 0:
            raise ValueError(f"mom2_update_weight: {self.mom2_update_weight} must be above 0")
        if not self.ridge >= 0:
            raise ValueError(f"ridge: {self.ridge} must be 0 or above")


SMALL: dict[str, Any] = {**SMALL_VALUES, "mom2_shrinkage": 1e-3}
"""Values for small models."""


@register_editor
class EMMET(SpreadEditor):
    """Equality-constrained Mass Model Editing: Δ = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹ (Gupta et al. 2024, section 4)."""

    name: ClassVar[str] = "emmet"
    pretty_name: ClassVar[str] = "EMMET"
    paper: ClassVar[str] = "Gupta, Sajnani, Anumanchipalli: A Unified Framework for Model Editing"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2403.14236"
    hyperparameters_class: ClassVar[type] = EMMETHyperparameters

    hyperparameters: EMMETHyperparameters

    @classmethod
    def adapted(cls, model: Any) -> dict[str, Any]:
        """`SMALL` for a model narrower than `SMALL_WIDTH`, nothing for others."""
        return dict(SMALL) if hidden_size(model) < SMALL_WIDTH else {}

    def system(self, prepared: Prepared, name: str) -> KeySystem:
        assert prepared.statistics is not None
        own = self.hyperparameters
        return KeySystem(moment_inverse(prepared.statistics.moments[name], own.mom2_update_weight, own.mom2_shrinkage))

    def rows(self, system: KeySystem, keys: Tensor) -> Tensor:
        return equality_rows(system, keys, self.hyperparameters.ridge)
