"""Spectra of matrices seen strip by strip, against dense float64 ones."""

from __future__ import annotations

import math

import pytest
import torch

from peft_prune.spectral import StripGram, effective_rank, energy_rank

from .dense import matrix_with_spectrum


def streamed(matrix: torch.Tensor, rows: int) -> StripGram:
    gram = StripGram(matrix.shape[1])
    for start in range(0, len(matrix), rows):
        gram.add(matrix[start : start + rows])
    return gram


@pytest.mark.parametrize("rows", [1, 7, 300, 1000])
def test_singular_values_do_not_depend_on_the_strips(rows: int) -> None:
    matrix = torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.svdvals(matrix.double())
    assert torch.allclose(streamed(matrix, rows).singular_values(), expected, rtol=1e-10)


@pytest.mark.parametrize("kappa", [10.0, 1e3, 1e6])
def test_the_condition_number_is_right_to_one_in_a_thousand(kappa: float) -> None:
    matrix = matrix_with_spectrum(200, 64, torch.logspace(0, -math.log10(kappa), 64, dtype=torch.float64))
    spectrum = torch.linalg.svdvals(matrix)
    report = streamed(matrix, 50).condition()
    assert report.condition_number == pytest.approx(float(spectrum[0] / spectrum[-1]), rel=1e-3)


def test_a_singular_matrix_has_an_infinite_condition_number() -> None:
    matrix = torch.ones(20, 4)
    assert math.isinf(streamed(matrix, 5).condition().condition_number)
    assert streamed(matrix, 5).condition().sigma_min == 0.0
    assert float(StripGram(4).singular_values().sum()) == 0.0


def test_leading_vectors_are_the_right_singular_ones() -> None:
    matrix = torch.randn(100, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    vectors = streamed(matrix, 30).leading(3)
    expected = torch.linalg.svd(matrix).Vh[:3].T
    assert torch.allclose((vectors * expected).sum(0).abs(), torch.ones(3, dtype=torch.float64))


def test_bfloat16_strips_are_summed_in_float64() -> None:
    matrix = torch.randn(5000, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert torch.allclose(streamed(matrix, 100).singular_values(), torch.linalg.svdvals(matrix.double()), rtol=1e-12)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"strip: shape \(3, 5\) must be \(rows, 4\)"):
        StripGram(4).add(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="strip: 1 of 4 elements are NaN or Inf"):
        StripGram(4).add(torch.tensor([[1.0, math.nan, 0.0, 0.0]]))


def test_effective_rank_counts_equal_directions_and_is_less_for_unequal_ones() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3.0)
    shares = [0.7, 0.2, 0.1]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(torch.tensor([7.0, 2.0, 1.0])) == pytest.approx(expected)
    assert effective_rank(torch.zeros(3)) == 0.0


def test_energy_rank_is_the_fewest_directions() -> None:
    values = torch.tensor([3.0, 2.0, 1.0])  # energies 9, 4, 1 of 14
    assert [energy_rank(values, share) for share in (0.5, 0.64, 0.65, 0.95, 1.0)] == [1, 1, 2, 3, 3]
    with pytest.raises(ValueError, match=r"energy: 1.5 must be above 0 and at most 1"):
        energy_rank(values, 1.5)
