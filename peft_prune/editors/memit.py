"""MEMIT: a batch of facts, one least-squares update in each of several layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..models.experts import SHARED
from ..models.mlp import key_width
from .base import Prepared, register_editor
from .closed_form import KeySystem, least_squares_rows, moment_inverse
from .hyperparameters import SEARCH
from .spread import SpreadEditor, SpreadHyperparameters
from .validation import check_above_zero, check_zero_or_above


@dataclass(frozen=True)
class MEMITHyperparameters(SpreadHyperparameters):
    """Defaults are those of the authors' file for GPT-2 XL, but for the stopping rule and ``history``.

    Args:
        mom2_update_weight: λ, how many ordinary keys the second moment stands for.
        mom2_shrinkage: Multiple of the second moment's mean diagonal that is added to its diagonal.
        history: Keep the outputs of all earlier edits' keys as well; off gives the original.
    """

    mom2_update_weight: float = 20_000.0
    mom2_shrinkage: float = 0.0
    history: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "mom2_update_weight")
        check_zero_or_above(self, "mom2_shrinkage")


PUBLISHED: dict[str, Any] = {"stop": "loss", "history": False, "second_try": False}
"""What makes the defaults the published method: `get_editor("memit", published=True)`."""

WEIGHT_PER_DIMENSION = 0.25
"""λ over the width of a key, for a model that nothing was published for.

An ordinary key has kᵀ C⁻¹ k equal to that width on average, so that of what is missing at it the share
1 / (1 + λ / width) is made up: 0.8 here. It is 0.24 by what was published for GPT-2 XL and 0.49 for Llama-3 8B, whose
five layers make up the rest one after another.
"""


@register_editor
class MEMIT(SpreadEditor):
    """Mass-Editing Memory: Δ = R Kᵀ (λC + K_p K_pᵀ + K Kᵀ)⁻¹ (Meng et al. 2022b, section 4.2).

    K_p holds the keys of all earlier edits where ``history`` is on, and is absent in the paper.
    """

    name: ClassVar[str] = "memit"
    pretty_name: ClassVar[str] = "MEMIT"
    paper: ClassVar[str] = "Meng, Sen Sharma, Andonian, Belinkov, Bau: Mass-Editing Memory in a Transformer"
    year: ClassVar[int] = 2022
    url: ClassVar[str] = "https://arxiv.org/abs/2210.07229"
    hyperparameters_class: ClassVar[type] = MEMITHyperparameters
    system_fields: ClassVar[tuple[str, ...]] = ("mom2_update_weight", "mom2_shrinkage")
    published_rules: ClassVar[Mapping[str, Any]] = PUBLISHED

    hyperparameters: MEMITHyperparameters

    @classmethod
    def adapted(cls, model: Any, experts: str = SHARED) -> dict[str, Any]:
        """`SEARCH`, and λ by `WEIGHT_PER_DIMENSION`."""
        return {**SEARCH, "mom2_update_weight": WEIGHT_PER_DIMENSION * key_width(model, experts)}

    @property
    def keeps_history(self) -> bool:
        return self.hyperparameters.history

    def system(self, prepared: Prepared, name: str) -> KeySystem:
        assert prepared.statistics is not None
        own = self.hyperparameters
        moment = prepared.statistics.moments[name]
        return KeySystem(moment_inverse(moment, own.mom2_update_weight, own.mom2_shrinkage, prepared.solving))

    def rows(self, system: KeySystem, keys: Tensor) -> Tensor:
        return least_squares_rows(system, keys)
