"""Leading eigenpairs of symmetric positive semidefinite operators by Lanczos iterations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_CHECK_EVERY = 4
_MOST_STEPS = 160


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


def eigenpairs_above(matrix: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """All eigenvalues of a positive semidefinite matrix above ``limit``, (k,) descending, and their vectors (n, k).

    A Lanczos iteration finds them where they are few. That none was missed is certain: limit · I minus the matrix
    without those found has a Cholesky factor. Where it has none, or where they are many, the matrix is diagonalized.

    Args:
        matrix: (n, n) float64.
        limit: Above 0.
    """
    size = matrix.shape[0]
    found = _few_above(matrix, limit)
    if found is not None:
        values, vectors = found
        rest = torch.addmm(matrix, vectors * values, vectors.T, alpha=-1)
        slack = limit * (1 + 1e-12) * torch.eye(size, dtype=matrix.dtype, device=matrix.device) - rest
        if int(torch.linalg.cholesky_ex(slack).info) == 0:
            return values, vectors
    values, vectors = torch.linalg.eigh(matrix)
    count = int((values > limit).sum())
    return values[size - count :].flip(0), vectors[:, size - count :].flip(1)


def _few_above(matrix: Tensor, limit: float) -> tuple[Tensor, Tensor] | None:
    """Eigenpairs above ``limit`` once all of them have converged; None where that takes too many steps."""
    size = matrix.shape[0]
    most = min(size, _MOST_STEPS)
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(size, generator=generator, dtype=torch.float64).to(matrix.device)
    basis = torch.empty(most, size, dtype=torch.float64, device=matrix.device)
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(1, most + 1):
        basis[step - 1] = vector / torch.linalg.vector_norm(vector)
        known = basis[:step]
        vector = matrix @ known[-1]
        diagonal.append(float(known[-1] @ vector))
        for _ in range(2):
            vector = vector - known.T @ (known @ vector)
        remainder = float(torch.linalg.vector_norm(vector))
        if step % (2 * _CHECK_EVERY) == 0 or step == most or remainder == 0.0:
            values, weights = torch.linalg.eigh(_tridiagonal(diagonal, beside))
            above = values > limit
            residuals = remainder * weights[-1, above].abs()
            # one value below the limit tells that the iteration has come past it
            if bool((residuals <= 1e-9 * values[above]).all()) and int(above.sum()) < step:
                return values[above].flip(0).to(matrix.device), known.T @ weights[:, above].flip(1).to(matrix.device)
            if remainder == 0.0:
                return None
        beside.append(remainder)
    return None


def _top_of_tridiagonal(diagonal: list[float], beside: list[float]) -> tuple[float, Tensor]:
    values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
    return float(values[-1]), vectors[:, -1]


def _tridiagonal(diagonal: list[float], beside: list[float]) -> Tensor:
    """The symmetric tridiagonal matrix, of which `torch.linalg.eigh` reads the lower triangle alone."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    index = torch.arange(len(diagonal) - 1)
    matrix[index + 1, index] = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    return matrix
