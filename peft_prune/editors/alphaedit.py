"""AlphaEdit: MEMIT's update within the null space of the second moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..models.experts import SHARED
from .base import Prepared, register_editor
from .closed_form import KeySystem, least_squares_rows, null_space_of
from .hyperparameters import SEARCH
from .second_moment import mean_diagonal
from .spread import SpreadEditor, SpreadHyperparameters
from .validation import check_above_zero, check_share


@dataclass(frozen=True)
class AlphaEditHyperparameters(SpreadHyperparameters):
    """Threshold and L2 follow the second moment of the layer where they are None; see `AlphaEdit.system`.

    Args:
        nullspace_threshold: Eigenvalue of C below which a direction is free to change; 0.02 is published for GPT-2 XL,
            GPT-J and Llama-3 8B, and belongs to their keys' scale.
        L2: λ of the update's norm; 10 is published for GPT-2 XL and GPT-J, 10 and 1 for Llama-3 8B.
        nullspace_energy: Share of C's trace that the null space may hold, where no threshold is given.
        relative_L2: L2 as a multiple of a key's mean squared norm within the null space, where none is given.
        history: Keep the outputs of all earlier edits' keys as well, as published.
    """

    nullspace_threshold: float | None = None
    L2: float | None = None
    nullspace_energy: float = 0.3
    relative_L2: float = 0.1
    history: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "nullspace_threshold", "L2", "relative_L2")
        check_share(self, "nullspace_energy")


PUBLISHED: dict[str, Any] = {"stop": "loss", "nullspace_threshold": 2e-2, "L2": 10.0, "second_try": False}
"""What makes the defaults the published method: `get_editor("alphaedit", published=True)`."""


@register_editor
class AlphaEdit(SpreadEditor):
    """Null-space constrained editing: Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + λI)⁻¹ (Fang et al. 2024, section 3.3).

    P projects onto the eigenvectors of C with small eigenvalues, so that ordinary keys keep their outputs.
    """

    name: ClassVar[str] = "alphaedit"
    pretty_name: ClassVar[str] = "AlphaEdit"
    paper: ClassVar[str] = "Fang et al.: AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2410.02355"
    hyperparameters_class: ClassVar[type] = AlphaEditHyperparameters
    system_fields: ClassVar[tuple[str, ...]] = ("nullspace_threshold", "L2", "nullspace_energy", "relative_L2")
    published_rules: ClassVar[Mapping[str, Any]] = PUBLISHED

    hyperparameters: AlphaEditHyperparameters

    @classmethod
    def adapted(cls, model: Any, experts: str = SHARED) -> dict[str, Any]:
        """`SEARCH`."""
        return dict(SEARCH)

    @property
    def keeps_history(self) -> bool:
        return self.hyperparameters.history

    def system(self, prepared: Prepared, name: str) -> KeySystem:
        """The projection of one module.

        Published thresholds are absolute and hold for moments of the published models' scale. Without one, the null
        space is that of the smallest eigenvalues which together hold ``nullspace_energy`` of the trace (without what a
        few channels that stand apart have beyond `mean_diagonal`), and L2 is ``relative_L2`` times the energy in it,
        the mean squared norm of a projected key.
        """
        assert prepared.statistics is not None
        own, moment = self.hyperparameters, prepared.statistics.moments[name]

        def choose(eigenvalues: Tensor) -> tuple[float, float]:
            threshold, weight, positive = own.nullspace_threshold, own.L2, eigenvalues.clamp(min=0)
            if threshold is None:
                held = positive.cumsum(0) / (len(positive) * float(mean_diagonal(moment)))
                place = int((held <= own.nullspace_energy).sum())
                # between two eigenvalues: another routine gives the one at the limit with another rounding
                threshold = float(positive[max(0, place - 1) : place + 1].mean())
            if weight is None:
                weight = own.relative_L2 * float(positive[positive < threshold].sum())
            return threshold, weight

        return KeySystem(null_space_of(moment, choose, prepared.solving))

    def rows(self, system: KeySystem, keys: Tensor) -> Tensor:
        return least_squares_rows(system, keys)
