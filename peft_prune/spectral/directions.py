"""Restraints that take directions of W₀ out of ΔW, whatever the size of its singular values.

Both are linear in ΔW: what they make of a sum of edits is the sum of what they make of each, so that acting on the
accumulated update is acting on every batch, as they are published.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .accumulation import dense_matrix, is_dense_form, of_dense
from .checks import require_finite, result_dtype
from .lowrank import LowRankUpdate
from .restraint import Restraint, register_restraint


@dataclass(frozen=True, eq=False)
class DirectionFilter:
    """(I - a L Lᵀ) ΔW (I - a R Rᵀ), with orthonormal columns L and R that are known for one layer.

    Args:
        left: L, (out, k), float64; None leaves that side alone.
        right: R, (in, k), float64; the same.
        strength: a, above 0 and at most 1.
    """

    left: Tensor | None
    right: Tensor | None
    strength: float

    @torch.no_grad()
    def applied(self, update: LowRankUpdate) -> LowRankUpdate:
        """The filtered update in factors of the same rank, float32 (float64 for float64 factors), without a gradient.

        Raises:
            ValueError: A factor holds NaN or Inf.
        """
        require_finite("update", update.B)
        require_finite("update", update.A)
        dtype = result_dtype(update.dtype)
        if is_dense_form(update):
            return of_dense(self._right(self._left(dense_matrix(update).double())).to(dtype))
        return LowRankUpdate(self._left(update.B.double()).to(dtype), self._right(update.A.double()).to(dtype))

    def _left(self, columns: Tensor) -> Tensor:
        if self.left is None:
            return columns
        side = self.left.to(columns.device)
        return columns - self.strength * (side @ (side.T @ columns))

    def _right(self, rows: Tensor) -> Tensor:
        if self.right is None:
            return rows
        side = self.right.to(rows.device)
        return rows - self.strength * ((rows @ side) @ side.T)


class DirectionalRestraint(Restraint):
    """A restraint that depends on the directions of W₀; its values do not follow from those of ΔW alone.

    A new one is a frozen dataclass with ``name``, ``formula``, ``source`` and `filter`, under `register_restraint`.
    """

    needs_weight: ClassVar[bool] = True

    @abstractmethod
    def filter(self, weight: Tensor) -> DirectionFilter:
        """What it takes out of any ΔW of a layer with the base weight W₀, (out, in)."""

    def above(self, s: Tensor, m: float) -> Tensor:
        raise ValueError(
            f"restraint: {self.name} takes directions of W₀ out of ΔW, and no function of s alone does that"
        )

    def __call__(self, s: Tensor, m: float) -> Tensor:
        return self.above(s, m)


@register_restraint
@dataclass(frozen=True)
class SphereRestraint(DirectionalRestraint):
    """Weakens the principal hyperspherical directions of W₀ on ΔW's input side: ΔW (I - α U Uᵀ).

    U holds the leading eigenvectors of Ŵᵀ Ŵ, Ŵ being W₀ with rows of norm 1, as many as are needed for more than the
    share η of its trace. The authors' code takes U of the weight as it is before each batch, edits included; here it is
    that of W₀, as their abstract says, so that an undo leaves nothing behind.

    Args:
        strength: α, above 0 and at most 1; 0.8 is published for MEMIT, PRUNE and RECT, 0.5 for AlphaEdit.
        ratio: η, above 0 and below 1; 0.5 is published.

    Raises:
        ValueError: A value does not lie there.
    """

    strength: float = 0.8
    ratio: float = 0.5

    name: ClassVar[str] = "sphere"
    formula: ClassVar[str] = "ΔW (I − α U Uᵀ), U: leading eigenvectors of Ŵ₀ᵀ Ŵ₀"
    source: ClassVar[str] = (
        "Liu et al., Energy-Regularized Sequential Model Editing on Hyperspheres, ICLR 2026, arXiv 2510.01172; "
        "AlphaEdit/AlphaEdit_main.py of PlusLabNLP/SPHERE at 6e8978a"
    )
    parameters: ClassVar[tuple[str, ...]] = ("strength", "ratio")

    def __post_init__(self) -> None:
        _require_share("strength", self.strength, closed=True)
        _require_share("ratio", self.ratio)

    @torch.no_grad()
    def filter(self, weight: Tensor) -> DirectionFilter:
        rows = weight.detach().double()
        rows = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + 1e-8)  # as in the authors' code
        _, energies, directions = leading_singular(rows)
        return DirectionFilter(None, directions[:, : count_above(energies, self.ratio)].contiguous(), self.strength)


@register_restraint
@dataclass(frozen=True)
class ReviveRestraint(DirectionalRestraint):
    """Keeps ΔW off the dominant singular directions of W₀ on both sides: (I - U Uᵀ) ΔW (I - V Vᵀ).

    In the basis uᵢ vⱼᵀ of W₀ every part of ΔW with i ≤ k or j ≤ k is 0, k being the least number of singular values
    that hold more than the share τ of the energy Σσ². Published code does not exist and the paper's text was not at
    hand: this is what its abstract and a public summary say; that energy means squares, and the default, are ours.

    Args:
        energy: τ, above 0 and below 1.

    Raises:
        ValueError: It does not lie there.
    """

    energy: float = 0.5

    name: ClassVar[str] = "revive"
    formula: ClassVar[str] = "(I − U Uᵀ) ΔW (I − V Vᵀ), U, V: dominant singular vectors of W₀"
    source: ClassVar[str] = (
        "Zhang et al., Spectral Characterization and Mitigation of Sequential Knowledge Editing Collapse, ACL 2026, "
        "arXiv 2601.11042"
    )
    parameters: ClassVar[tuple[str, ...]] = ("energy",)

    def __post_init__(self) -> None:
        _require_share("energy", self.energy)

    @torch.no_grad()
    def filter(self, weight: Tensor) -> DirectionFilter:
        left, energies, right = leading_singular(weight.detach().double())
        count = count_above(energies, self.energy)
        return DirectionFilter(left[:, :count].contiguous(), right[:, :count].contiguous(), 1.0)


def leading_singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, n), σ² (n,) in descending order and V (in, n) of a matrix in float64, n its smaller side.

    By the eigenvectors of the Gram matrix of the smaller side, which costs a fraction of an SVD. The directions of
    small singular values are less exact; what is asked for are the leading ones.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    energies, near = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
    energies, near = energies.flip(0).clamp(min=0), near.flip(1)
    far = (matrix @ near if tall else matrix.T @ near) / energies.sqrt().clamp(min=torch.finfo(matrix.dtype).tiny)
    return (far, energies, near) if tall else (near, energies, far)


def count_above(energies: Tensor, share: float) -> int:
    """How many of the leading energies hold more than this share of their sum; one at least, where there is one."""
    held = energies.cumsum(0) / energies.sum().clamp(min=torch.finfo(energies.dtype).tiny)
    return min(int((held <= share).sum()) + 1, len(energies))


def _require_share(name: str, value: float, closed: bool = False) -> None:
    if not (0 < value < 1 or (closed and value == 1)):
        raise ValueError(f"{name}: {value} must lie above 0 and {'at most at' if closed else 'below'} 1")
