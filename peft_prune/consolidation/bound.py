"""The bound that training stays within: no singular value of ΔW above what the restraint left of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import EditFailedError
from ..spectral import LowRankUpdate, reorthogonalize
from ..tuner import PruneEditLayer

SHRINK = 0.97
SLACK = 1e-6
"""By how much the bound is undercut, so that rounding to float32 does not pass it."""


class SpectralBound:
    """Holds an update's singular values, in their order, at or below those of another one.

    Works on the factors alone: a thin QR of B and of Aᵀ, and the singular value decomposition of the small core
    between them. Where sᵢ exceeds its bound bᵢ, B becomes (I − Σ(1 − √(bᵢ/sᵢ)) uᵢuᵢᵀ) B and A the same from the right
    with vᵢ: the product loses what is above, and nothing else changes, so that an optimizer's moments stay those of
    the same entries.

    Args:
        limit: The update whose singular values are the bound, (out, in).
    """

    def __init__(self, limit: LowRankUpdate) -> None:
        self._limit = limit.to(torch.float64).singular_values() * (1 - SLACK)

    @torch.no_grad()
    def hold(self, update: LowRankUpdate) -> float:
        """Bring an update within the bound, in place; how far it was above, as a multiple of the bound."""
        left, left_triangle = torch.linalg.qr(update.B.double())
        right, right_triangle = torch.linalg.qr(update.A.double().T)
        core = left_triangle @ right_triangle.T
        U, s, Vh = torch.linalg.svd(core, full_matrices=False)
        limit = self._of(s)
        above = s > limit
        if not bool(above.any()):
            return 0.0
        excess = float((s[above] / limit[above].clamp(min=1e-300)).max()) - 1
        loss = 1 - (limit[above] / s[above]).sqrt()
        _take_off(update.B, left @ U[:, above], loss)
        _take_off(update.A.T, right @ Vh[above].T, loss)
        return excess

    def _of(self, s: Tensor) -> Tensor:
        limit = self._limit.to(s.device)
        return torch.nn.functional.pad(limit, (0, max(0, len(s) - len(limit))))[: len(s)]


class Bounds:
    """The bounds of all layers: on the singular values of ΔW, and on κ(W₀ + ΔW).

    Edits may lower a condition number; then the base's is the bound, which scaling an update down leads back to.

    Args:
        limit: By module, the update that neither may exceed; none where there is no bound.
        layers: The adapted layers.
    """

    def __init__(self, limit: Mapping[str, LowRankUpdate], layers: Mapping[str, PruneEditLayer]) -> None:
        self._layers = layers
        self._values = {name: SpectralBound(update) for name, update in limit.items()}
        self._conditions = {name: _largest_condition(layers[name], own) for name, own in limit.items()}

    def hold(self, factors: Mapping[str, LowRankUpdate]) -> None:
        """Bring the singular values of every layer within their bound, in place."""
        for name, bound in self._values.items():
            bound.hold(factors[name])

    def settle(self, factors: Mapping[str, LowRankUpdate]) -> None:
        """The same, and κ as well."""
        self.hold(factors)
        for name, condition in self._conditions.items():
            within_condition(factors[name], self._layers[name], condition)


def _largest_condition(layer: PruneEditLayer, update: LowRankUpdate) -> float:
    return max(layer.condition().of(own).condition_number for own in (update, update.scaled(0.0)))


@torch.no_grad()
def within_condition(update: LowRankUpdate, layer: PruneEditLayer, limit: float) -> float:
    """Scale an update down, in place, until κ(W₀ + ΔW) is at most ``limit``; what it was multiplied with.

    A bound on the singular values of ΔW bounds the largest one of W₀ + ΔW and not the smallest, so κ is looked at
    itself.

    Raises:
        EditFailedError: Half of the update is above the limit as well.
    """
    share = 1.0
    while not layer.condition().of(update.scaled(share)).condition_number <= limit:
        share *= SHRINK
        if share < 0.5:
            raise EditFailedError(
                f"consolidation: the condition number of {layer.name_in_base} cannot be brought to the restraint's, "
                f"{limit:.3g}, so nothing has changed; take a smaller learning_rate"
            )
    update.B.mul_(share)
    return share


def _take_off(factor: Tensor, directions: Tensor, share: Tensor) -> None:
    """Take this share of each direction, orthonormal columns, out of a factor's columns, in place."""
    wide = factor.double()
    factor.copy_(wide - (directions * share) @ (directions.T @ wide))


def balanced(update: LowRankUpdate) -> LowRankUpdate:
    """The update in the factors U √s, √s Vᵀ, of a rank no larger than the layer, float32."""
    return reorthogonalize(update.to(torch.float32)).update()
