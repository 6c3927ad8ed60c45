"""Confidence intervals against published numbers and scipy."""

from __future__ import annotations

import pytest
import torch

from peft_prune.evaluation import Proportion, bootstrap_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_gives_the_published_numbers(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for n in (1, 7, 60, 4000):
        for successes in {0, 1, n // 3, n}:
            reference = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
            assert wilson_interval(successes, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_interval_of_nothing_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_interval_names_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"successes: {successes}"):
        wilson_interval(successes, n)


def test_bootstrap_interval_is_close_to_the_t_interval_of_many_values() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = torch.randn(400, generator=torch.Generator().manual_seed(3)).mul(2).add(1).tolist()
    reference = stats.t.interval(0.95, 399, loc=sum(values) / 400, scale=stats.sem(values))
    assert bootstrap_interval(values) == pytest.approx(tuple(map(float, reference)), abs=0.03)


def test_bootstrap_interval_repeats_and_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    assert bootstrap_interval([1.0, 2.0, 5.0]) == bootstrap_interval([1.0, 2.0, 5.0])
    assert torch.equal(before, torch.get_rng_state())


def test_bootstrap_interval_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="values: is empty"):
        bootstrap_interval([])


def test_a_proportion_of_nothing_has_no_value() -> None:
    assert Proportion.of([]).to_json() == {"value": None, "n": 0, "low": None, "high": None}


def test_a_proportion_carries_its_n_and_interval() -> None:
    low, high = wilson_interval(3, 4)
    assert Proportion.of([True, True, False, True]).to_json() == {"value": 0.75, "n": 4, "low": low, "high": high}
