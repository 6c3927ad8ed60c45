from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from peft_prune.spectral import counted_sigma_max, sigma_max

from .dense import matrix_with_spectrum, random


def _exact(weight: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(weight.double())[0])


@pytest.mark.parametrize("shape", [(120, 300), (300, 120), (200, 200), (1, 50), (50, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sigma_max_is_exact_to_its_tolerance(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for seed in range(4):
        weight = random(*shape, seed=seed, dtype=dtype)
        assert sigma_max(weight) == pytest.approx(_exact(weight), rel=1e-5)
        assert sigma_max(weight, tolerance=1e-9) == pytest.approx(_exact(weight), rel=1e-9)


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-4, 1e-2])
def test_close_leading_singular_values_do_not_deceive_it(gap: float) -> None:
    values = torch.cat([torch.tensor([1.0]), torch.full((30,), 1.0 - gap), torch.linspace(0.9, 0.1, 100)])
    assert sigma_max(matrix_with_spectrum(150, 200, values).float()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_scale_of_the_weight_does_not_matter(scale: float) -> None:
    weight = random(80, 120) * scale
    assert sigma_max(weight) == pytest.approx(_exact(weight), rel=1e-5)


def test_rank_one_and_zero_weights() -> None:
    column, row = random(60, 1), random(1, 90)
    assert sigma_max(column @ row) == pytest.approx(float(column.norm() * row.norm()), rel=1e-5)
    assert sigma_max(torch.zeros(60, 90)) == 0.0
    assert sigma_max(torch.zeros(0, 90)) == 0.0


class _CountProducts(TorchFunctionMode):
    """Counts the products with a matrix of one of two shapes."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shapes, self.count = {shape, shape[::-1]}, 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if "matmul" in func.__name__ and any(tuple(getattr(value, "shape", ())) in self.shapes for value in args):
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_it_counts_the_products_that_it_makes() -> None:
    weight = random(400, 1000)
    with _CountProducts((400, 1000)) as counter:
        value, products = counted_sigma_max(weight)
    assert products == counter.count
    assert 10 <= products <= 200
    assert value == sigma_max(weight)
    assert counted_sigma_max(weight, tolerance=1e-2).products < products


def test_it_draws_no_random_number_of_the_callers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    sigma_max(random(40, 60))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(4), r"weight: shape \(4,\) must be two-dimensional"),
        (torch.ones(4, 4, dtype=torch.int8), "weight: dtype torch.int8 must be a floating dtype"),
        (torch.full((4, 4), math.nan), "weight: 16 of 16 elements are NaN or Inf"),
        (torch.tensor([[1.0, -math.inf]]), "weight: 1 of 2 elements are NaN or Inf"),
    ],
)
def test_weights_that_are_none_are_refused(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sigma_max(weight)


@pytest.mark.parametrize("tolerance", [0.0, -1e-5, 1.0, math.nan])
def test_a_tolerance_out_of_range_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match=f"tolerance: {tolerance} must be between"):
        sigma_max(torch.ones(2, 2), tolerance=tolerance)
