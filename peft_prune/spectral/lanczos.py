"""The largest eigenvalue of a symmetric positive semidefinite operator given by its products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_CHECK_EVERY = 4


class Eigenpair(NamedTuple):
    """An eigenvalue, its unit eigenvector (n,) and the number of operator products spent."""

    value: float
    vector: Tensor
    steps: int


def largest_eigenvalue(
    apply: Callable[[Tensor], Tensor],
    size: int,
    device: torch.device,
    tolerance: float,
    start: Tensor | None = None,
) -> Eigenpair:
    """Largest eigenvalue by Lanczos with full reorthogonalization, in float64.

    Args:
        apply: The operator, from a float64 vector (n,) to a float64 vector (n,).
        size: n.
        device: Where the vectors live.
        tolerance: Stop when the residual of the Ritz pair is at most this times its value.
        start: A vector (n,) near the eigenvector, where one is known; a little of a fixed random vector is mixed in.

    Full reorthogonalization keeps k vectors of n float64 numbers after k steps and costs O(n k²) operations.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(size, generator=generator, dtype=torch.float64).to(device)
    vector = vector / torch.linalg.vector_norm(vector)
    if start is not None:
        vector = start + 0.1 * vector
    basis = torch.empty(min(size, 32), size, dtype=torch.float64, device=device)
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(1, size + 1):
        if step > basis.shape[0]:
            basis = torch.cat([basis, torch.empty_like(basis[: size - basis.shape[0]])])
        basis[step - 1] = vector / torch.linalg.vector_norm(vector)
        known = basis[:step]
        vector = apply(known[-1])
        diagonal.append(float(known[-1] @ vector))
        for _ in range(2):
            vector = vector - known.T @ (known @ vector)
        remainder = float(torch.linalg.vector_norm(vector))
        if step % _CHECK_EVERY == 0 or step == size or remainder == 0.0:
            value, weights = _top_of_tridiagonal(diagonal, beside)
            if remainder * abs(float(weights[-1])) <= tolerance * value or step == size:
                break
        beside.append(remainder)
    return Eigenpair(max(value, 0.0), known.T @ weights.to(device), step)


def _top_of_tridiagonal(diagonal: list[float], beside: list[float]) -> tuple[float, Tensor]:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    index = torch.arange(len(diagonal) - 1)
    matrix[index + 1, index] = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(matrix)
    return float(values[-1]), vectors[:, -1]
