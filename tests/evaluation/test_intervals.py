"""Confidence intervals against published numbers and scipy."""

from __future__ import annotations

import pytest
import torch

from peft_prune.evaluation import Mean, Proportion, bootstrap_interval, unvaried_interval, wilson_interval


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


def test_what_does_not_vary_has_wilsons_bound_on_what_might_have() -> None:
    low, high = wilson_interval(0, 30)
    assert unvaried_interval(0.0, 30, (0.0, 1.0)) == (low, high)
    assert unvaried_interval(1.0, 30, (0.0, 1.0)) == pytest.approx(wilson_interval(30, 30))
    assert unvaried_interval(0.5, 30, (0.0, 1.0)) == pytest.approx((0.5 - high / 2, 0.5 + high / 2))
    assert Mean.of([0.25] * 30, (0.0, 1.0)) == Mean.unvaried(0.25, 30, (0.0, 1.0))
    assert Mean.of([3.0, 3.0]) == Mean(3.0, 2, None, None)  # nothing bounds it


def test_the_interval_of_clusters_holds_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    held, plain = 0, 0
    for _ in range(400):
        # of 30 requests each has its own chance, and five prompts that share it
        chance = torch.rand(30, 1, generator=generator)
        hits = (torch.rand(30, 5, generator=generator) < chance.round()).tolist()
        found = Proportion.of_clusters(hits)
        single = Proportion.of(hit for own in hits for hit in own)
        assert found.value == single.value and found.n == 150
        held += found.low <= 0.5 <= found.high
        plain += single.low <= 0.5 <= single.high
    assert 0.92 <= held / 400 <= 0.98 and plain / 400 < 0.75


def test_clusters_that_do_not_hang_together_count_as_single_trials() -> None:
    hits = [[True], [False], [True], [True], [False]]
    assert Proportion.of_clusters(hits) == Proportion.of(hit for own in hits for hit in own)
    assert Proportion.of_clusters([[True, False], [False, True], []]) == Proportion.of([True, False, False, True])
    assert Proportion.of_clusters([[True], [True]]) == Proportion.of([True] * 2)
    assert Proportion.of_clusters([[], []]).value is None


def test_clusters_that_all_ended_alike_count_as_one_trial_each() -> None:
    for hit in (True, False):
        found, single = Proportion.of_clusters([[hit] * 10] * 3), Proportion.of([hit] * 3)
        assert (found.value, found.n) == (single.value, 30)
        assert (found.low, found.high) == pytest.approx((single.low, single.high))
