from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from peft_prune.spectral import ConditionNumber, ConditionReport, LogRestraint, LowRankUpdate, restrain

from .dense import dense, matrix_with_spectrum, random, random_update


def exact(weight: Tensor, update: LowRankUpdate) -> tuple[float, float, float]:
    values = torch.linalg.svdvals(weight.double() + dense(update))
    return float(values[0]), float(values[-1]), float(values[0] / values[-1])


def assert_report_is(report: ConditionReport, expected: tuple[float, float, float], tolerance: float) -> None:
    assert report.sigma_max == pytest.approx(expected[0], rel=tolerance)
    assert report.sigma_min == pytest.approx(expected[1], rel=tolerance)
    assert report.condition_number == pytest.approx(expected[2], rel=tolerance)


def log_spectrum(shape: tuple[int, int], condition: float) -> Tensor:
    """A weight whose singular values fall evenly over the decades: many of them crowd near the smallest."""
    count = min(shape)
    return matrix_with_spectrum(*shape, torch.logspace(0, -math.log10(condition), count, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(80, 150), (150, 80), (100, 100), (1, 30), (30, 1)], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 8, 60])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_condition_number_equals_the_dense_svd(shape: tuple[int, int], rank: int, dtype: torch.dtype) -> None:
    weight = random(*shape, seed=3, dtype=dtype)
    update = random_update(*shape, rank, dtype=dtype)
    condition = ConditionNumber(weight)
    assert_report_is(condition.of(update), exact(weight, update), 1e-5)
    base = exact(weight, LowRankUpdate.zeros(*shape))
    assert (condition.sigma_max, condition.sigma_min, condition.condition_number) == pytest.approx(base, rel=1e-9)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("known", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ill_conditioned_weights_up_to_1e6_are_exact_to_1e_3(known: float, size: float, dtype: torch.dtype) -> None:
    weight = log_spectrum((90, 140), known).to(dtype)
    update = random_update(90, 140, 6).scaled(size / 90)
    expected = exact(weight, update)
    assert expected[2] > known / 3
    assert_report_is(ConditionNumber(weight).of(update), expected, 1e-7)


def test_a_large_update_of_a_well_conditioned_weight_is_exact_to_1e_3() -> None:
    weight = log_spectrum((90, 140), 1e3)
    update = random_update(90, 140, 6, dtype=torch.float64).scaled(10.0)
    expected = exact(weight, update)
    assert expected[2] > 5e5
    assert_report_is(ConditionNumber(weight).of(update), expected, 1e-3)


def test_beyond_1e7_a_matrix_counts_as_singular() -> None:
    for weight in (log_spectrum((90, 140), 1e9), random(90, 40) @ random(40, 140), torch.zeros(9, 14)):
        condition = ConditionNumber(weight)
        report = condition.of(random_update(*weight.shape, 2).scaled(1e-3))
        assert (condition.sigma_min, condition.condition_number) == (0.0, math.inf)
        assert (report.sigma_min, report.condition_number) == (0.0, math.inf)


def test_an_update_can_mend_a_singular_weight() -> None:
    weight = random(90, 85, dtype=torch.float64) @ random(85, 140, dtype=torch.float64)
    update = random_update(90, 140, 12, dtype=torch.float64)
    condition = ConditionNumber(weight)
    assert condition.condition_number == math.inf
    assert_report_is(condition.of(update), exact(weight, update), 1e-6)


def test_an_update_can_make_a_weight_singular() -> None:
    weight = matrix_with_spectrum(60, 90, torch.linspace(3, 1, 60))
    U, s, Vh = torch.linalg.svd(weight, full_matrices=False)
    removed = LowRankUpdate(-U[:, 20:23] * s[20:23], Vh[20:23])
    report = ConditionNumber(weight).of(removed)
    assert report.sigma_max == pytest.approx(3.0, rel=1e-5)
    assert (report.sigma_min, report.condition_number) == (0.0, math.inf)


def test_columns_of_very_different_norms_and_duplicates_do_not_matter() -> None:
    weight = random(80, 150)
    scale = torch.logspace(-14, 14, 6)
    update = LowRankUpdate(random(80, 6) * scale, random(6, 150, seed=1) / scale[:, None])
    update = update.append(update)
    update = update.append(LowRankUpdate(torch.zeros(80, 1), torch.zeros(1, 150)))
    assert_report_is(ConditionNumber(weight).of(update), exact(weight, update), 1e-5)


@pytest.mark.parametrize("shape", [(80, 150), (150, 80)], ids=str)
def test_products_kept_from_edit_to_edit_change_no_result(shape: tuple[int, int]) -> None:
    weight = random(*shape, seed=3)
    condition = ConditionNumber(weight)
    update, kept = random_update(*shape, 4), None
    for seed in range(10, 14):
        kept = condition.project(update, kept)
        fresh = condition.project(update)
        for name in ("near", "far", "gram"):
            assert torch.allclose(getattr(kept, name), getattr(fresh, name), rtol=1e-12, atol=1e-12)
        assert_report_is(condition.of(kept), exact(weight, update), 1e-5)
        update = update.append(random_update(*shape, 1, seed=seed))


@pytest.mark.parametrize("shape", [(80, 150), (150, 80)], ids=str)
def test_only_new_columns_cost_a_product_with_the_weight(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    condition = ConditionNumber(random(*shape, seed=3))
    counted: list[int] = []
    multiply = condition._weight_times
    monkeypatch.setattr(
        condition, "_weight_times", lambda columns: (counted.append(columns.shape[1]), multiply(columns))[1]
    )
    update = random_update(*shape, 7)
    kept = condition.project(update)
    kept = condition.project(update.append(random_update(*shape, 2, seed=9)), kept)
    kept = condition.project(restrain(kept.update, LogRestraint(), 5.0), kept)
    assert counted == [7, 2, 0]
    assert_report_is(condition.of(kept), exact(random(*shape, seed=3), kept.update), 1e-5)


def test_products_of_an_unrelated_update_are_not_taken_over() -> None:
    weight = random(80, 150, seed=3)
    condition = ConditionNumber(weight)
    kept = condition.project(random_update(80, 150, 6))
    other = random_update(80, 150, 4, seed=20)
    swapped = LowRankUpdate(kept.update.B[:, [0, 2, 1]], kept.update.A[[0, 2, 1]])
    first_changed = LowRankUpdate(kept.update.B * torch.tensor([2.0, 1, 1, 1, 1, 1]), kept.update.A)
    for update in (other, swapped, first_changed):
        assert_report_is(condition.of(condition.project(update, kept)), exact(weight, update), 1e-5)


def test_condition_takes_no_gradient_and_leaves_the_weight_alone() -> None:
    weight = torch.nn.Parameter(random(30, 40))
    before = weight.detach().clone()
    update = random_update(30, 40, 2)
    update.B.requires_grad_()
    projected = ConditionNumber(weight).project(update)
    assert not projected.near.requires_grad and not projected.far.requires_grad
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(4), r"weight: shape \(4,\) must be two-dimensional"),
        (torch.full((4, 4), math.nan), "weight: 16 of 16 elements are NaN or Inf"),
        (torch.ones(0, 4), r"weight: shape \(0, 4\) must hold at least one element"),
    ],
)
def test_weights_that_are_none_are_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionNumber(weight)


def test_updates_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    condition = ConditionNumber(random(20, 30))
    with pytest.raises(ValueError, match=r"update: shape \(30, 20\) must be that of the weight, \(20, 30\)"):
        condition.of(random_update(30, 20, 2))
    update = random_update(20, 30, 2)
    update.A[0, 0] = math.inf
    with pytest.raises(ValueError, match="A: 1 of 60 elements are NaN or Inf"):
        condition.of(update)
