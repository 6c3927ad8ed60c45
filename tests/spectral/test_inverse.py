"""Factors and inverses that take their matrix's place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peft_prune.spectral import inverse as module
from peft_prune.spectral.inverse import cholesky_, inverse_from_cholesky_


def positive(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    rows = torch.randn(2 * size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    return (rows.T @ rows / size).to(dtype)


@pytest.mark.parametrize("block", [1, 3, 16, 512])
@pytest.mark.parametrize("size", [1, 2, 16, 37])
def test_the_inverse_takes_the_place_of_the_matrix(monkeypatch: pytest.MonkeyPatch, size: int, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    matrix = positive(size)
    expected_factor, expected = torch.linalg.cholesky(matrix), torch.linalg.inv(matrix)
    place = matrix.data_ptr()
    assert cholesky_(matrix)
    assert torch.allclose(matrix, expected_factor, rtol=0, atol=1e-12 * float(expected_factor.max()))
    assert inverse_from_cholesky_(matrix).data_ptr() == place == matrix.data_ptr()
    assert float((matrix - expected).norm()) < 1e-10 * float(expected.norm())
    assert torch.equal(matrix, matrix.T)


def test_a_matrix_without_a_factor_is_told() -> None:
    matrix = positive(5)
    matrix[3, 3] = -1
    assert not cholesky_(matrix)
