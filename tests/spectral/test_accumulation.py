"""Sums beyond full rank and figures around an earlier sum, against dense float64 computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from peft_prune.spectral import (
    ConditionNumber,
    GrownGram,
    LogRestraint,
    LowRankUpdate,
    OutputPerturbation,
    Reference,
    accumulated,
    get_restraint,
    is_dense_form,
    restrain,
    restrain_by_gram,
    restrain_with_change,
)
from peft_prune.spectral.lanczos import eigenpairs_above

SHAPES = [(24, 60), (60, 24), (30, 30)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def random_updates(shape: tuple[int, int], count: int, seed: int = 0) -> list[LowRankUpdate]:
    """Rank-1 updates with a direction in common, as the keys of edits have."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1, shape[1], generator=generator)
    return [
        LowRankUpdate(
            torch.randn(shape[0], 1, generator=generator), torch.randn(1, shape[1], generator=generator) + common
        )
        for _ in range(count)
    ]


def summed(updates: list[LowRankUpdate]) -> Tensor:
    return sum((u.B.double() @ u.A.double() for u in updates), torch.zeros((), dtype=torch.float64))


def in_turn(updates: list[LowRankUpdate]) -> LowRankUpdate:
    total = updates[0]
    for update in updates[1:]:
        total = accumulated(total, update)
    return total


def dense_restraint(delta: Tensor, name: str, m: float) -> Tensor:
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return u @ torch.diag(get_restraint(name)(s, m)) @ vh


@every_shape
@pytest.mark.parametrize("count", [10, 24, 25, 300])
def test_a_sum_has_at_most_full_rank_and_is_exact(shape, count: int) -> None:
    updates = random_updates(shape, count)
    total, expected = in_turn(updates), summed(updates)
    assert total.rank == min(count, *shape)
    assert is_dense_form(total) == (count > min(shape))
    assert float((total.to(torch.float64).dense() - expected).norm() / expected.norm()) < 1e-6
    scaled = accumulated(total.scaled(0.5), total.scaled(0.5))
    assert torch.allclose(scaled.dense(), total.dense(), atol=1e-5 * float(expected.norm()))


@every_shape
@pytest.mark.parametrize("name", ["log", "linear", "clip", "scale"])
@pytest.mark.parametrize("level", [0.9, 0.5, 0.05, 2.0])
def test_the_restraint_of_a_dense_sum_equals_the_dense_one(shape, name: str, level: float) -> None:
    updates = random_updates(shape, 100)
    total, expected = in_turn(updates), summed(updates)
    m = level * float(torch.linalg.matrix_norm(expected, 2))
    effective, change = restrain_with_change(total, get_restraint(name), m)
    wanted = dense_restraint(expected, name, m)
    assert float((effective.to(torch.float64).dense() - wanted).norm() / wanted.norm()) < 2e-6
    assert is_dense_form(effective) and (effective is total) == (level > 1)
    if name != "scale" or level > 1:
        assert change is not None
        difference = effective.to(torch.float64).dense() - total.to(torch.float64).dense()
        assert torch.allclose(change.to(torch.float64).dense(), difference, atol=1e-6 * float(expected.norm()))


@every_shape
@pytest.mark.parametrize("name", ["log", "linear", "clip", "scale"])
@pytest.mark.parametrize("level", [0.9, 0.3, 0.02, 2.0])
def test_the_restraint_by_the_gram_matrix_of_the_shorter_side_keeps_the_factors_rank(shape, name: str, level) -> None:
    updates = random_updates(shape, 18)
    # columns of very different size, and one that adds nothing
    updates[3] = LowRankUpdate(updates[3].B * 2.0**20, updates[3].A / 2.0**20)
    updates[5] = LowRankUpdate(updates[5].B * 1e6, torch.zeros_like(updates[5].A))
    grown = GrownGram.of(in_turn(updates[:12]))
    for update in updates[12:]:
        grown = grown.added(update)
    total, expected = in_turn(updates), summed(updates)
    m = level * float(torch.linalg.matrix_norm(expected, 2))
    effective, change = restrain_by_gram(total, get_restraint(name), m, grown)
    wanted = dense_restraint(expected, name, m)
    assert float((effective.to(torch.float64).dense() - wanted).norm() / wanted.norm()) < 2e-6
    assert effective.rank == 18 and (effective is total) == (level > 1)
    if name != "scale" or level > 1:
        assert change is not None
        difference = wanted - expected
        assert torch.allclose(change.to(torch.float64).dense(), difference, atol=1e-6 * float(expected.norm()))


@every_shape
def test_columns_that_cancel_are_restrained_by_an_svd(shape) -> None:
    updates = random_updates(shape, 8)
    large = [update.scaled(3e4) for update in random_updates(shape, 4, seed=1)]
    total = in_turn([*large, *updates, *(update.scaled(-1.0) for update in large)])
    expected = summed(updates)
    m = 0.5 * float(torch.linalg.matrix_norm(expected, 2))
    effective, _ = restrain_by_gram(total, get_restraint("linear"), m)
    wanted = dense_restraint(expected, "linear", m)
    assert float((effective.to(torch.float64).dense() - wanted).norm() / wanted.norm()) < 2e-6


@every_shape
def test_the_change_of_factors_is_what_the_restraint_took(shape) -> None:
    total = in_turn(random_updates(shape, 12))
    m = 0.4 * total.spectral_norm()
    effective, change = restrain_with_change(total, LogRestraint(1.5), m)
    assert change is not None and 0 < change.rank < 12
    assert torch.allclose(effective.dense(), total.dense() + change.dense(), atol=1e-5 * m)


def test_a_spread_that_gram_matrices_cannot_resolve_is_restrained_by_an_svd() -> None:
    update = LowRankUpdate(torch.eye(20), torch.diag(torch.logspace(6, -1, 20)))
    found = restrain(update, get_restraint("clip"), 1.0).to(torch.float64).dense()
    assert torch.allclose(found, dense_restraint(update.to(torch.float64).dense(), "clip", 1.0), atol=1e-5)


@every_shape
def test_a_grown_gram_matrix_equals_the_whole_one(shape) -> None:
    updates = random_updates(shape, 80)
    total = in_turn(updates[:60])
    grown = GrownGram.of(total)
    for update in updates[60:]:
        total, grown = accumulated(total, update), grown.added(update)
        if total is not None and len(updates) % 7 == 0:
            grown = grown.at(total)
    dense = summed(updates)
    expected = dense @ dense.T if shape[0] <= shape[1] else dense.T @ dense
    assert float((grown.at(total).matrix - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize(
    "values", [[9, 5, 5, 5, 1, 0.5], [3.0] * 6, [1, 0.5, 0.1, 0, 0, 0], [2.0000001, 2, 1, 1, 1, 1]]
)
@pytest.mark.parametrize("size", [6, 200])
def test_no_eigenvalue_above_the_limit_is_missed_though_some_are_equal(values, size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0][:, :6]
    matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
    found, vectors = eigenpairs_above(matrix, 1.5)
    expected = sorted((v for v in values if v > 1.5), reverse=True)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))
    assert torch.allclose(matrix @ vectors, vectors * found, atol=1e-7)


@every_shape
@pytest.mark.parametrize("weight_rank", [None, 20])
@pytest.mark.parametrize("moves", [0, 3])
def test_figures_around_an_earlier_sum_equal_dense_ones(shape, weight_rank, moves: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator)
    if weight_rank is not None:
        weight = torch.randn(shape[0], weight_rank, generator=generator) @ torch.randn(
            weight_rank, shape[1], generator=generator
        )
    inputs = torch.randn(500, shape[1], generator=generator, dtype=torch.float64)
    moment = inputs.T @ inputs / 500
    updates = [update.scaled(0.05) for update in random_updates(shape, 70)]
    base, output = ConditionNumber(weight), OutputPerturbation(weight, moment)
    first = 60 - 10 * moves
    reference = Reference(base, in_turn(updates[:first]))
    for start in range(first, 60, 10):
        reference.condition(updates[start])  # the figures of an edit on the way, whose products are of use
        reference = reference.moved(in_turn(updates[start : start + 10]))
        assert reference is not None
    since = LowRankUpdate.zeros(*shape)
    for index, update in enumerate(updates[60:], start=61):
        since = since.append(update)
        change = since.append(updates[index % 5].scaled(-0.5))
        delta = summed(updates[:index]) - 0.5 * summed([updates[index % 5]])
        edited = weight.double() + delta
        s = torch.linalg.svdvals(edited)
        found = reference.condition(change)
        assert math.isclose(found.sigma_max, float(s[0]), rel_tol=1e-4)
        assert math.isclose(found.condition_number, float(s[0] / s[-1]), rel_tol=1e-3)
        assert math.isclose(reference.spectral_norm(change), float(torch.linalg.matrix_norm(delta, 2)), rel_tol=2e-4)
        u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
        rows = (u.T @ delta) if shape[0] <= shape[1] else (delta @ vh.T).T
        energies = rows.square().sum(1).flip(0)
        if weight_rank is None:
            assert torch.allclose(reference.energies(change), energies, rtol=1e-4, atol=1e-6 * float(energies.sum()))
        assert math.isclose(float(reference.energies(change).sum()), float(delta.square().sum()), rel_tol=1e-5)
        ratio = float(torch.trace(delta @ moment @ delta.T)) / float(
            torch.trace(weight.double() @ moment @ weight.double().T)
        )
        assert math.isclose(output.of(change, reference.dense), ratio, rel_tol=1e-4)


def test_a_reference_is_moved_neither_far_nor_for_ever() -> None:
    updates = random_updates((24, 60), 14)
    reference = Reference(ConditionNumber(torch.randn(24, 60)), updates[0])
    assert reference.moved(in_turn(updates[1:13])) is not None
    assert reference.moved(in_turn(updates)) is None
    moves = 0
    while (further := reference.moved(updates[1])) is not None:
        reference, moves = further, moves + 1
        if moves == 20:
            reference._moved_by = 4090
    assert moves == 26
