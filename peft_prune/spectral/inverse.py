"""The inverse of a symmetric positive definite matrix in its own memory: what a solve with second moments holds."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 512
"""Columns that are worked on together: what is held beside the matrix is twice as many rows of it."""


def cholesky_(matrix: Tensor) -> bool:
    """Overwrite a symmetric matrix, (n, n), with its lower Cholesky factor L, zeros above; or say that it has none.

    Where there is none the matrix is lost as well. Nothing of the size of the matrix is allocated beside it where it
    is contiguous: LAPACK's column order of a symmetric matrix is its own row order.

    Returns:
        Whether it is positive definite.
    """
    # the routine wants columns one behind the other; of a symmetric matrix these are the rows
    columns = matrix.T
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(columns, out=(columns, failed))
    if int(failed):
        return False
    _transpose_(matrix)
    return True


def inverse_from_cholesky_(factor: Tensor) -> Tensor:
    """Overwrite a lower Cholesky factor L, (n, n), with (L Lᵀ)⁻¹, whole and symmetric.

    By blocks of columns, as LAPACK's trtri and lauum do it (Golub and Van Loan 2013, sections 3.1 and 4.2), on whatever
    device the factor stands and with `BLOCK` of its rows beside it.
    """
    starts = range(0, len(factor), BLOCK)
    for start in reversed(starts):
        _invert_columns_(factor, start, min(start + BLOCK, len(factor)))
    for start in starts:
        stop = min(start + BLOCK, len(factor))
        # Lᵀ L of the inverted factor, from the rows that have not been overwritten
        factor[start:stop, :stop] = factor[start:, start:stop].T @ factor[start:, :stop]
    _mirror_(factor)
    return factor


def _invert_columns_(factor: Tensor, start: int, stop: int) -> None:
    """Columns of L⁻¹, where all those to the right are inverted already."""
    corner = factor[start:stop, start:stop]
    identity = torch.eye(stop - start, dtype=factor.dtype, device=factor.device)
    inverted = torch.linalg.solve_triangular(corner, identity, upper=False)
    if stop < len(factor):
        below = factor[stop:, start:stop] @ inverted
        _times_lower_(factor[stop:, stop:], below)
        factor[stop:, start:stop] = below.neg_()
    corner.copy_(inverted)


def _times_lower_(lower: Tensor, columns: Tensor) -> None:
    """Overwrite the columns with the product of a lower triangular matrix and them, from the last rows up."""
    for start in reversed(range(0, len(lower), BLOCK)):
        stop = min(start + BLOCK, len(lower))
        columns[start:stop] = lower[start:stop, :stop] @ columns[:stop]


def _transpose_(matrix: Tensor) -> None:
    """Transpose in place, block by block."""
    for start in range(0, len(matrix), BLOCK):
        stop = min(start + BLOCK, len(matrix))
        matrix[start:stop, start:stop] = matrix[start:stop, start:stop].T.clone()
        right = matrix[start:stop, stop:].clone()
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
        matrix[stop:, start:stop] = right.T


def _mirror_(matrix: Tensor) -> None:
    """Make a matrix symmetric by what stands below its diagonal."""
    for start in range(0, len(matrix), BLOCK):
        stop = min(start + BLOCK, len(matrix))
        corner = matrix[start:stop, start:stop].tril()
        matrix[start:stop, start:stop] = corner + corner.tril(-1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
