"""How much an update changes the outputs of a layer on ordinary inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import require_matrix
from .lowrank import LowRankUpdate


class OutputPerturbation:
    """tr(ΔW C ΔWᵀ) / tr(W₀ C W₀ᵀ): the mean squared change of the output over the mean squared output.

    C = E[k kᵀ] is the second moment of ordinary inputs. A product with C is kept for the rows of A that an update
    shares with the one before, so an update that has grown pays for its new rows only.

    Args:
        weight: W₀, (out, in).
        moment: C, (in, in).

    Raises:
        ValueError: C is not of W₀'s input width, or the layer's outputs are zero on it.
    """

    @torch.no_grad()
    def __init__(self, weight: Tensor, moment: Tensor) -> None:
        require_matrix("weight", weight)
        if tuple(moment.shape) != (weight.shape[1], weight.shape[1]):
            raise ValueError(f"moment: shape {tuple(moment.shape)} must be {(weight.shape[1],) * 2}")
        self._moment = moment.to(weight.device)
        dtype = torch.promote_types(moment.dtype, torch.float32)
        ordinary = weight.detach().to(dtype)
        self._energy = float(((ordinary @ self._moment.to(dtype)).double() * ordinary.double()).sum())
        if not self._energy > 0:
            raise ValueError("moment: the layer's outputs on it are zero")
        self._around: Tensor | None = None  # R whose tr(R C Rᵀ) is known
        self._share = 0.0
        self._rows: Tensor | None = None  # A of the last update, (r, in)
        self._products: Tensor | None = None  # A C, (r, in)

    @torch.no_grad()
    def of(self, update: LowRankUpdate, around: Tensor | None = None) -> float:
        """The ratio for ΔW = B A, or for ΔW = R + B A.

        Args:
            update: B A.
            around: R, (out, in); its own share is computed once for the same tensor.

        Raises:
            ValueError: The update is of another input width.
        """
        if update.A.shape[1] != self._moment.shape[0]:
            raise ValueError(f"update: {update.A.shape[1]} inputs, the second moment has {self._moment.shape[0]}")
        reference = 0.0 if around is None else self._of_dense(around)
        if update.rank == 0:
            return max(reference, 0.0) / self._energy
        rows = update.A.to(self._moment.device, torch.promote_types(self._moment.dtype, torch.float32))
        known = _same_leading(self._rows, rows)
        new = rows[known:] @ self._moment.to(rows.dtype)
        products = new if self._products is None or known == 0 else torch.cat([self._products[:known], new])
        self._rows, self._products = rows, products
        left = update.B.to(rows.device).double()
        inner = products.double() @ rows.double().T
        beside = 0.0 if around is None else 2 * float(((around.to(products.dtype) @ products.T).double() * left).sum())
        return max(reference + beside + float((left.T @ left * inner).sum()), 0.0) / self._energy

    def _of_dense(self, matrix: Tensor) -> float:
        if self._around is not matrix:
            own = matrix.to(self._moment.device, torch.promote_types(self._moment.dtype, torch.float32))
            self._around = matrix
            self._share = float(((own @ self._moment.to(own.dtype)).double() * own.double()).sum())
        return self._share


def _same_leading(old: Tensor | None, new: Tensor) -> int:
    """How many leading rows two matrices have in common, exactly."""
    if old is None or old.dtype != new.dtype:
        return 0
    count = min(len(old), len(new))
    same = (old[:count] == new[:count]).all(dim=1)
    return int(same.to(torch.int64).cumprod(0).sum())
