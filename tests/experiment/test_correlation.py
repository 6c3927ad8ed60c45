"""Rank correlations and what is stated of them, against independent computations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from peft_prune.experiment import spearman
from peft_prune.experiment.correlation import correlation, over_seeds, student_quantile


def test_spearman_equals_scipys_with_and_without_ties() -> None:
    generator = np.random.default_rng(0)
    for levels in (1000, 4):
        x = generator.integers(levels, size=50)
        y = x + generator.integers(levels, size=50)
        expected = stats.spearmanr(x, y).statistic
        assert spearman(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected)


def test_spearman_has_no_value_where_one_side_does_not_vary() -> None:
    assert spearman(torch.ones(5), torch.arange(5)) is None


@pytest.mark.parametrize("degrees", [1, 2, 3, 9, 40])
def test_students_quantile_equals_scipys(degrees: int) -> None:
    assert student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-5)


def test_an_interval_over_seeds_is_students() -> None:
    values = [0.2, 0.5, 0.7, 0.6]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert over_seeds(values) == pytest.approx((np.mean(values), low, high), rel=1e-5)
    assert over_seeds([1.0, 0.99, 0.9])[2] == 1.0
    assert over_seeds(values[:2])[1:] == (None, None)
    assert over_seeds([0.2, None, 0.4]) == (None, None, None)


def points(seeds: int, variants: int, marks: tuple[int, ...]) -> list[Any]:
    generator = np.random.default_rng(1)
    return [
        SimpleNamespace(unit=SimpleNamespace(seed=seed, name=f"seed{seed}"), edits=mark, x=x, y=x + generator.normal())
        for seed in range(seeds)
        for mark in marks
        for x in generator.normal(size=variants) + 10 * mark
    ]


def test_a_correlation_is_taken_within_each_seed_and_at_each_mark() -> None:
    own = points(3, 6, (1, 2))
    found = correlation(own, "x", lambda p: p.x, "y", lambda p: p.y)

    def rho(chosen: list[Any]) -> float:
        return stats.spearmanr([p.x for p in chosen], [p.y for p in chosen]).statistic

    whole = [rho([p for p in own if p.unit.seed == seed]) for seed in range(3)]
    within = [
        np.mean([rho([p for p in own if (p.unit.seed, p.edits) == (seed, mark)]) for mark in (1, 2)])
        for seed in range(3)
    ]
    assert found.rho == pytest.approx(np.mean(whole))
    assert found.within == pytest.approx(np.mean(within))
    assert found.low < found.rho < found.high and found.within_low < found.within < found.within_high
    assert (found.n, found.seeds) == (36, 3)


def test_few_variants_or_seeds_have_no_rank_correlation_or_no_interval() -> None:
    found = correlation(points(2, 3, (1, 2)), "x", lambda p: p.x, "y", lambda p: p.y)
    assert found.rho is not None and found.low is None and found.within is None
