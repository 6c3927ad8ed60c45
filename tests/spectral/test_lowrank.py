from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from peft_prune.spectral import LogRestraint, LowRankUpdate, reorthogonalize, restrain, truncate

from .dense import SHAPES, dense, matrix_with_spectrum, norm, random, random_update


def test_append_is_the_sum_and_keeps_the_order_of_columns() -> None:
    first, second = random_update(20, 30, 3), random_update(20, 30, 2, seed=5)
    both = first.append(second)
    assert both.rank == 5
    assert torch.equal(both.B[:, :3], first.B) and torch.equal(both.A[3:], second.A)
    assert norm(dense(both) - dense(first) - dense(second)) < 1e-12


def test_an_update_of_rank_zero_is_zero_and_neutral() -> None:
    zero, update = LowRankUpdate.zeros(20, 30), random_update(20, 30, 3)
    assert (zero.rank, zero.shape, zero.spectral_norm(), zero.frobenius_norm()) == (0, (20, 30), 0.0, 0.0)
    assert zero.dense().shape == (20, 30) and not zero.dense().any()
    assert zero.singular_values().shape == (0,)
    assert torch.equal(zero.append(update).B, update.B)
    spectrum = reorthogonalize(zero)
    assert spectrum.U.shape == (20, 0) and spectrum.Vh.shape == (0, 30)
    assert truncate(zero, rank=2)[1] == 0.0


def test_scaling_and_casting_act_on_the_product() -> None:
    update = random_update(20, 30, 3)
    assert norm(dense(update.scaled(-2.5)) + 2.5 * dense(update)) < 1e-4
    assert update.to(torch.bfloat16).dtype == torch.bfloat16
    assert update.to(dtype=torch.float64).B.dtype == torch.float64


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_reorthogonalize_equals_the_dense_svd(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    update = random_update(*shape, dtype=dtype)
    spectrum = reorthogonalize(update)
    count = min(shape)
    expected = torch.linalg.svdvals(dense(update))[:count]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    identity = torch.eye(count, dtype=torch.float64)
    assert spectrum.s.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert spectrum.s.shape == (count,)
    assert (spectrum.s - expected).abs().max() < tolerance * expected[0]
    assert norm(spectrum.U.double().T @ spectrum.U.double() - identity) < 2 * tolerance
    assert norm(spectrum.Vh.double() @ spectrum.Vh.double().T - identity) < 2 * tolerance
    assert norm(dense(spectrum.update()) - dense(update)) < 2 * tolerance * expected[0]
    assert (update.singular_values() - expected).abs().max() < tolerance * expected[0]
    assert update.spectral_norm() == pytest.approx(float(expected[0]), rel=1e-12)
    assert update.frobenius_norm() == pytest.approx(float(dense(update).norm()), rel=1e-12)


def test_balanced_factors_have_equal_column_norms() -> None:
    update = reorthogonalize(LowRankUpdate(1e6 * random(40, 5), 1e-4 * random(5, 60, seed=1))).update()
    assert torch.allclose(update.B.norm(dim=0), update.A.norm(dim=1), rtol=1e-5)


def test_columns_of_very_different_norms_lose_nothing() -> None:
    scale = torch.logspace(-12, 12, 10)
    update = LowRankUpdate(random(40, 10) * scale, random(10, 60, seed=1) / scale[:, None])
    expected = torch.linalg.svdvals(dense(update))[:10]
    assert ((update.singular_values() - expected).abs() < 1e-6 * expected).all()


def test_rank_deficiency_shows_as_singular_values_of_zero() -> None:
    column, row = random(40, 4), random(4, 60, seed=1)
    update = LowRankUpdate(torch.cat([column, column], dim=1), torch.cat([row, 2 * row]))
    values = update.singular_values()
    assert (values[:4] - torch.linalg.svdvals(dense(update))[:4]).abs().max() < 1e-6 * values[0]
    assert values[4:].max() < 1e-12 * values[0]


def test_columns_that_cancel_exactly_leave_a_norm_of_rounding_size() -> None:
    column, row = random(40, 1), random(1, 60, seed=1)
    update = LowRankUpdate(torch.cat([column, column], dim=1), torch.cat([row, -row]))
    assert update.spectral_norm() < 1e-13 * float(column.norm() * row.norm())


def test_an_update_near_zero_keeps_its_relative_accuracy() -> None:
    update = LowRankUpdate(1e-22 * random(40, 6), 1e-12 * random(6, 60, seed=1))
    assert update.spectral_norm() == pytest.approx(norm(dense(update)), rel=1e-10)


@pytest.mark.parametrize("keep", [0, 1, 5, 12, 100])
def test_truncation_by_rank_is_the_nearest_and_reports_its_error(keep: int) -> None:
    update = random_update(40, 90, 12)
    truncated, error = truncate(update, rank=keep)
    values = torch.linalg.svdvals(dense(update))
    assert truncated.rank == min(keep, 12)
    assert error == pytest.approx(float(values[keep:12].norm() / values.norm()), rel=1e-9, abs=1e-12)
    made = float((dense(truncated) - dense(update)).norm() / dense(update).norm())
    assert made == pytest.approx(error, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("energy", "rank"), [(1.0, 4), (0.999, 3), (0.9, 1), (0.5, 1)])
def test_truncation_by_energy_keeps_the_fewest_directions_that_hold_the_share(energy: float, rank: int) -> None:
    values = torch.tensor([10.0, 3.0, 1.0, 0.1], dtype=torch.float64)
    left = torch.linalg.qr(random(30, 4, dtype=torch.float64))[0]
    right = torch.linalg.qr(random(40, 4, seed=1, dtype=torch.float64))[0]
    truncated, error = truncate(LowRankUpdate(left * values, right.T), energy=energy)
    assert truncated.rank == rank
    assert error == pytest.approx(float(values[rank:].norm() / values.norm()), abs=1e-12)


def test_the_smaller_of_two_limits_holds() -> None:
    update = random_update(40, 60, 8)
    assert truncate(update, rank=3, energy=0.999)[0].rank == 3
    assert truncate(update, rank=8, energy=0.01)[0].rank == 1


def test_restrain_then_truncate_loses_less_than_truncate_then_restrain() -> None:
    values = torch.tensor([200.0, 30.0, 12.0, 11.0, 10.5, 10.2], dtype=torch.float64)
    spectrum = reorthogonalize(_factored(matrix_with_spectrum(30, 50, torch.cat([values, torch.zeros(24)])), 6))
    update, m = spectrum.update(), 4.0
    wanted = dense(restrain(update, LogRestraint(2.0), m))
    after, _ = truncate(restrain(update, LogRestraint(2.0), m), energy=0.9)
    before = restrain(truncate(update, energy=0.9)[0], LogRestraint(2.0), m)
    assert (dense(after) - wanted).norm() < 0.5 * (dense(before) - wanted).norm()


def _factored(matrix: torch.Tensor, rank: int) -> LowRankUpdate:
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return LowRankUpdate(U[:, :rank] * s[:rank], Vh[:rank])


@pytest.mark.parametrize(
    ("B", "A", "message"),
    [
        (torch.ones(3), torch.ones(1, 4), r"B: shape \(3,\) must be two-dimensional"),
        (torch.ones(3, 2), torch.ones(1, 4), r"B: shape \(3, 2\) .* A has shape \(1, 4\)"),
        (torch.ones(3, 1), torch.ones(1, 4, dtype=torch.int64), r"A: dtype torch.int64"),
        (torch.ones(3, 1), torch.ones(1, 4, dtype=torch.float64), r"B: dtype torch.float32 must be that of A"),
        ([[1.0]], torch.ones(1, 4), "B: must be a tensor, is list"),
    ],
)
def test_factors_that_make_no_update_are_refused(B: torch.Tensor, A: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowRankUpdate(B, A)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["B", "A"])
@pytest.mark.parametrize("call", [reorthogonalize, LowRankUpdate.spectral_norm, LowRankUpdate.frobenius_norm])
def test_factors_that_are_not_finite_are_refused_by_name(call: Callable, name: str, bad: float) -> None:
    update = random_update(20, 30, 3)
    getattr(update, name)[1, 2] = bad
    with pytest.raises(ValueError, match=f"^{name}: 1 of "):
        call(update)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "rank: give rank, energy or both"),
        ({"rank": -1}, "rank: -1"),
        ({"energy": 0.0}, "energy: 0.0"),
        ({"energy": 1.5}, "energy: 1.5"),
        ({"energy": math.nan}, "energy: nan"),
    ],
)
def test_limits_of_truncation_out_of_range_are_refused(limits: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        truncate(random_update(20, 30, 3), **limits)


def test_append_of_another_shape_or_dtype_is_refused() -> None:
    update = random_update(20, 30, 3)
    with pytest.raises(ValueError, match=r"other: shape \(20, 31\) must be \(20, 30\)"):
        update.append(random_update(20, 31, 3))
    with pytest.raises(ValueError, match=r"other: dtype torch\.float64"):
        update.append(random_update(20, 30, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="factor: nan"):
        update.scaled(math.nan)
