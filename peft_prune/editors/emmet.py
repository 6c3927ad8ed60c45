"""EMMET: a batch of facts by equality constraints, ROME's objective for many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..models.experts import SHARED
from ..models.mlp import mlp_output_modules
from .base import Prepared, register_editor
from .closed_form import KeySystem, equality_rows, moment_inverse
from .hyperparameters import SEARCH
from .presets import preset
from .spread import SpreadEditor, SpreadHyperparameters
from .validation import check_above_zero, check_zero_or_above


@dataclass(frozen=True)
class EMMETHyperparameters(SpreadHyperparameters):
    """Defaults are those of the authors' file for GPT-2 XL, but for the stopping rule and where no layers are given.

    Their files name one layer each; several share the change as in MEMIT.

    Args:
        mom2_update_weight: λ of C in the constraint's metric; it matters against ``ridge`` alone.
        mom2_shrinkage: Multiple of the second moment's mean diagonal that is added to its diagonal.
        ridge: α, added to the diagonal of Kᵀ (λC)⁻¹ K for batches whose keys nearly depend on each other
            [emmet_lambda]; a single key needs none and gets none, as in the published code.
    """

    mom2_update_weight: float = 1000.0
    mom2_shrinkage: float = 0.0
    ridge: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "mom2_update_weight")
        check_zero_or_above(self, "mom2_shrinkage", "ridge")


PUBLISHED: dict[str, Any] = {"stop": "loss", "second_try": False}
"""What makes the defaults the published method: `get_editor("emmet", published=True)`."""

ADAPTED: dict[str, Any] = {**SEARCH, "mom2_shrinkage": 1e-3, "mom2_update_weight": 1.0}
"""Values for a model that nothing was published for, with a second moment over some ten thousand tokens."""


@register_editor
class EMMET(SpreadEditor):
    """Equality-constrained Mass Model Editing: Δ = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹ (Gupta et al. 2024, section 4)."""

    name: ClassVar[str] = "emmet"
    pretty_name: ClassVar[str] = "EMMET"
    paper: ClassVar[str] = "Gupta, Sajnani, Anumanchipalli: A Unified Framework for Model Editing"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2403.14236"
    hyperparameters_class: ClassVar[type] = EMMETHyperparameters
    system_fields: ClassVar[tuple[str, ...]] = ("mom2_update_weight", "mom2_shrinkage")
    published_rules: ClassVar[Mapping[str, Any]] = PUBLISHED

    hyperparameters: EMMETHyperparameters

    @classmethod
    def adapted(cls, model: Any, experts: str = SHARED) -> dict[str, Any]:
        """`ADAPTED`."""
        return dict(ADAPTED)

    @classmethod
    def published(cls, model: Any) -> dict[str, Any]:
        """As for every editor; one layer, as in the authors' files, for a model that none of them is of."""
        layer = (
            cls().default_layers(len(mlp_output_modules(model, experts=SHARED)))[-1]
            if preset(cls.name, model) is None
            else None
        )
        return {**({} if layer is None else {"layers": (layer,)}), **super().published(model)}

    def system(self, prepared: Prepared, name: str) -> KeySystem:
        assert prepared.statistics is not None
        own = self.hyperparameters
        moment = prepared.statistics.moments[name]
        return KeySystem(moment_inverse(moment, own.mom2_update_weight, own.mom2_shrinkage, prepared.solving))

    def rows(self, system: KeySystem, keys: Tensor) -> Tensor:
        return equality_rows(system, keys, self.hyperparameters.ridge if keys.shape[1] > 1 else 0.0)
