"""Two updates beside each other, and their weighted sums, against dense float64."""

from __future__ import annotations

import pytest
import torch

from peft_prune.spectral import LowRankUpdate, compare_updates, reduced, weighted_sum
from tests.tiny import random_update

SHAPES = [(12, 30), (30, 12)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_figure_is_that_of_the_dense_matrices(shape: tuple[int, int]) -> None:
    shared = random_update(shape, rank=2, seed=3)
    one = random_update(shape, rank=3, seed=1).append(shared)
    other = random_update(shape, rank=2, seed=2).append(shared.scaled(-0.5))
    found = compare_updates(one, other)
    first, second = (update.B.double() @ update.A.double() for update in (one, other))
    assert found.ranks == (5, 4)
    assert found.norms == pytest.approx((float(first.norm()), float(second.norm())), rel=1e-6)
    assert found.difference == pytest.approx(float((first - second).norm()), rel=1e-6)
    cosine = float((first * second).sum() / first.norm() / second.norm())
    assert found.cosine == pytest.approx(cosine, abs=1e-6)
    bases = []
    for matrix, rank in ((first, 5), (second, 4)):
        U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
        bases.append((U[:, :rank], Vh[:rank].T))
    for side, angles in enumerate((found.outputs, found.inputs)):
        expected = torch.linalg.svdvals(bases[0][side].T @ bases[1][side])
        assert torch.allclose(angles, expected, atol=1e-6)
        assert torch.allclose(angles[:2], torch.ones(2, dtype=torch.float64), atol=1e-6) and float(angles[2]) < 0.999
    for own, other_side, share in ((first, bases[1], found.shared[0]), (second, bases[0], found.shared[1])):
        U, V = other_side
        assert share == pytest.approx(float((U @ (U.T @ own @ V) @ V.T).norm() / own.norm()) ** 2, abs=1e-6)


def test_an_update_and_itself_agree_and_nothing_is_shared_with_none() -> None:
    one = random_update((10, 20), rank=3)
    same = compare_updates(one, one.append(one))  # twice the update, in factors that say less of their rank
    assert same.ranks == (3, 3) and same.cosine == pytest.approx(1) and same.shared == pytest.approx((1, 1))
    assert same.difference == pytest.approx(same.norms[0], rel=1e-5)
    none = compare_updates(one, LowRankUpdate.zeros(10, 20))
    assert none.ranks == (3, 0) and none.cosine == 0 and none.shared == (0, 0) and none.outputs.numel() == 0
    cancelled = compare_updates(one.append(one.scaled(-1)), one)
    assert cancelled.ranks[0] == 0
    with pytest.raises(ValueError, match="other: shape"):
        compare_updates(one, random_update((20, 10)))


@pytest.mark.parametrize("rank", [2, 9])
def test_a_weighted_sum_is_that_of_the_dense_matrices_in_factors_no_wider_than_the_weight(rank: int) -> None:
    updates = [random_update((8, 20), rank=rank, seed=seed) for seed in range(3)]
    found = weighted_sum(updates, [1.0, -2.5, 0.0])
    expected = updates[0].B.double() @ updates[0].A.double() - 2.5 * updates[1].B.double() @ updates[1].A.double()
    assert torch.allclose(found.B.double() @ found.A.double(), expected, atol=1e-4)
    assert found.rank == min(2 * rank, 8)
    with pytest.raises(ValueError, match="1 for 3 updates"):
        weighted_sum(updates, [1.0])


@pytest.mark.parametrize("shape", SHAPES)
def test_what_cancels_takes_no_rank(shape: tuple[int, int]) -> None:
    kept, gone = random_update(shape, rank=3, seed=1), random_update(shape, rank=4, seed=2)
    difference = weighted_sum([kept.append(gone), gone], [1.0, -1.0])
    found = reduced(difference)
    assert difference.rank == 11 and found.rank == 3
    assert torch.allclose(found.dense(), kept.dense(), atol=1e-4)
    assert reduced(kept) is kept and reduced(weighted_sum([gone, gone], [1.0, -1.0])).rank == 0
