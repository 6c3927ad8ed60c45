"""The closed forms against the dense textbook formulas in float64, rank-deficient moments included."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from peft_prune.editors.closed_form import (
    KeySystem,
    condensed,
    equality_rows,
    least_squares_rows,
    moment_inverse,
    null_space_inverse,
)

WIDTH = 40


def random_moment(rank: int = WIDTH, spread: float = 3.0) -> Tensor:
    """A second moment whose eigenvalues span ``spread`` decades, of the given rank."""
    generator = torch.Generator().manual_seed(rank)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator))[0]
    values = torch.logspace(0, -spread, WIDTH, dtype=torch.float64)
    values[rank:] = 0
    return (basis * values) @ basis.T


def random_keys(count: int, seed: int = 0) -> Tensor:
    return torch.randn(WIDTH, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("batches", [(3,), (3, 2), (1, 1, 1, 4), (30, 30)])
@pytest.mark.parametrize("history", [True, False])
def test_least_squares_equals_the_textbook_formula(batches: tuple[int, ...], history: bool) -> None:
    moment, weight = random_moment(), 7.0
    system = KeySystem(moment_inverse(moment, weight))
    earlier = torch.zeros(WIDTH, 0, dtype=torch.float64)
    for index, count in enumerate(batches):
        keys = random_keys(count, index)
        found = least_squares_rows(system.hold(earlier if history else None), keys)
        matrix = weight * moment + keys @ keys.T + (earlier @ earlier.T if history else 0)
        assert relative_error(found, torch.linalg.solve(matrix, keys).T) < 1e-8
        earlier = torch.cat([earlier, keys], dim=1)


def test_a_shorter_or_other_history_is_taken_up_anew() -> None:
    moment = random_moment()
    system = KeySystem(moment_inverse(moment))
    long, other, keys = random_keys(6, 1), random_keys(6, 2), random_keys(2, 3)
    for earlier in (long, long[:, :2], other, None, other[:, :0]):
        total = moment if earlier is None else moment + earlier @ earlier.T
        assert relative_error(system.hold(earlier).applied(keys), torch.linalg.solve(total, keys)) < 1e-8


@pytest.mark.parametrize("rank", [10, 39])
def test_a_rank_deficient_moment_is_regularised_with_a_warning_that_says_by_how_much(rank: int) -> None:
    moment, keys = random_moment(rank), random_keys(3)
    with pytest.warns(UserWarning, match=r"singular; .* of its mean diagonal was added") as caught:
        rows = least_squares_rows(KeySystem(moment_inverse(moment, 2.0)), keys)
    added = float(str(caught[0].message).split("singular; ")[1].split(" ")[0])
    ridge = added * moment.diagonal().mean() * torch.eye(WIDTH, dtype=torch.float64)
    expected = torch.linalg.solve(2.0 * (moment + ridge) + keys @ keys.T, keys).T
    assert relative_error(rows, expected) < 1e-4


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_equality_constraints_equal_the_textbook_formula(ridge: float) -> None:
    moment, keys = random_moment(), random_keys(4)
    found = equality_rows(KeySystem(moment_inverse(moment)), keys, ridge)
    inverse = torch.linalg.inv(moment)
    inner = keys.T @ inverse @ keys + ridge * torch.eye(4, dtype=torch.float64)
    assert relative_error(found, torch.linalg.inv(inner) @ keys.T @ inverse) < 1e-8
    if ridge == 0:
        assert torch.allclose(found @ keys, torch.eye(4, dtype=torch.float64), atol=1e-8)


def test_keys_that_depend_on_each_other_are_named() -> None:
    keys = random_keys(2)
    with pytest.raises(ValueError, match="3 keys of the batch depend on each other"):
        equality_rows(KeySystem(moment_inverse(random_moment())), torch.cat([keys, keys[:, :1]], dim=1))


@pytest.mark.parametrize("threshold", [3e-3, 3e-1], ids=["small null space", "large null space"])
def test_the_null_space_form_equals_the_published_system(threshold: float) -> None:
    moment, weight = random_moment(), 0.7
    values, vectors = torch.linalg.eigh(moment)
    null = vectors[:, values < threshold]
    projection = null @ null.T
    keys, earlier = random_keys(3), random_keys(5, 1)
    found = least_squares_rows(KeySystem(null_space_inverse(moment, threshold, weight)).hold(earlier), keys)
    identity = torch.eye(WIDTH, dtype=torch.float64)
    matrix = projection @ (keys @ keys.T + earlier @ earlier.T) + weight * identity
    expected = torch.linalg.solve(matrix, projection @ keys).T
    assert relative_error(found, expected) < 1e-8
    assert float((found @ vectors[:, values >= threshold]).norm()) < 1e-10 * float(found.norm())


def test_a_threshold_below_all_eigenvalues_is_named() -> None:
    with pytest.raises(ValueError, match="nullspace_threshold: 1e-09 lies below all eigenvalues"):
        null_space_inverse(random_moment(), 1e-9, 1.0)


def test_nothing_is_warned_of_where_nothing_is_added() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moment_inverse(random_moment(spread=6.0))


@pytest.mark.parametrize("projected", [False, True])
def test_more_keys_than_the_layer_is_wide_give_the_textbook_formula_in_bounded_memory(projected: bool) -> None:
    moment, weight = random_moment(), 2.0
    if projected:
        values, vectors = torch.linalg.eigh(moment)
        null = vectors[:, values < 3e-2]
        inverse, solve = null_space_inverse(moment, 3e-2, weight), null @ null.T
    else:
        inverse, solve = moment_inverse(moment, weight), None
    system, held = KeySystem(inverse), torch.zeros(0, WIDTH, dtype=torch.float64)
    total = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for seed in range(6 * WIDTH):
        keys = random_keys(1, seed)
        found = least_squares_rows(system.hold(held.T), keys)
        everything = total + keys @ keys.T
        if solve is None:
            expected = torch.linalg.solve(weight * moment + everything, keys).T
        else:
            expected = torch.linalg.solve(solve @ everything + weight * torch.eye(WIDTH), solve @ keys).T
        assert relative_error(found, expected) < 1e-7
        held, total = condensed([held, keys.T]), everything
    assert len(held) <= 1.25 * WIDTH
    assert relative_error(held.T @ held, total) < 1e-10
    # a history that is taken up anew, as after resuming, gives the same
    again = least_squares_rows(KeySystem(inverse).hold(held.T), keys)
    assert relative_error(again, least_squares_rows(system.hold(held.T), keys)) < 1e-9
