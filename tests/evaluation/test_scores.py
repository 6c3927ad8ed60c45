"""The score, differences to the base, and their intervals against direct computations."""

from __future__ import annotations

import random
from statistics import harmonic_mean

import numpy as np
import pytest
import torch

from peft_prune.evaluation import difference, differences, harmonic_score, wilson_interval
from peft_prune.evaluation.bootstrap import RESAMPLES, Draws, average, over_seeds, perplexity, share


def outcomes_of(seed: int, count: int = 40) -> dict[str, list[tuple[bool, ...]]]:
    rng = random.Random(seed)
    sizes = {"efficacy": 1, "generalization": 2, "locality": 5}
    return {kind: [tuple(rng.random() < 0.6 for _ in range(n)) for _ in range(count)] for kind, n in sizes.items()}


def test_score_is_the_harmonic_mean_of_the_three_shares() -> None:
    outcomes = outcomes_of(0)
    shares = [np.mean([hit for own in outcomes[kind] for hit in own]) for kind in outcomes]
    score = harmonic_score(outcomes)
    assert score.value == pytest.approx(harmonic_mean(shares))
    assert score.n == 40 and score.low < score.value < score.high


def test_a_request_without_one_of_the_three_is_left_out_of_the_score() -> None:
    outcomes = outcomes_of(0)
    outcomes["locality"][0] = ()
    rest = {kind: own[1:] for kind, own in outcomes.items()}
    assert harmonic_score(outcomes) == harmonic_score(rest)


def test_score_is_zero_where_one_share_is() -> None:
    outcomes = outcomes_of(0) | {"locality": [(False, False)] * 40}
    assert harmonic_score(outcomes).value == 0.0


def test_score_has_no_value_without_requests() -> None:
    assert harmonic_score({"efficacy": [()], "generalization": [()], "locality": [()]}).value is None


def test_difference_is_paired_over_requests() -> None:
    rng = random.Random(3)
    base = [tuple(float(rng.random() < 0.5) for _ in range(rng.randint(1, 4))) for _ in range(60)]
    own = [tuple(1.0 if rng.random() < 0.1 else hit for hit in one) for one in base]
    gap = difference(own, base)
    flat = [(a, b) for x, y in zip(own, base, strict=True) for a, b in zip(x, y, strict=True)]
    assert gap.value == pytest.approx(np.mean([a - b for a, b in flat]))
    generator = np.random.default_rng(0)
    resampled = []
    for _ in range(4000):
        chosen = generator.integers(60, size=60)
        parts = [(a - b) for i in chosen for a, b in zip(own[i], base[i], strict=True)]
        resampled.append(np.mean(parts))
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert gap.low == pytest.approx(low, abs=0.02) and gap.high == pytest.approx(high, abs=0.02)


def test_the_same_outcomes_differ_by_exactly_nothing() -> None:
    outcomes = outcomes_of(1)
    for gap in differences(outcomes, outcomes).values():
        # as many requests may differ as Wilson's interval allows where none of n does
        assert (gap.value, gap.high) == (0.0, wilson_interval(0, gap.n)[1]) and gap.low == -gap.high


def test_difference_refuses_other_prompts() -> None:
    with pytest.raises(ValueError, match="base: has outcomes of 1 requests"):
        difference([(True,), (False,)], [(True,)])


def test_draws_of_a_share_have_the_interval_of_a_bootstrap() -> None:
    units = [[float(i % 3 == 0), 1.0] for i in range(90)]
    draws = Draws.of(units, share)
    assert draws.value == pytest.approx(1 / 3)
    assert len(draws.samples) == RESAMPLES
    assert float(draws.samples.std()) == pytest.approx((1 / 3 * 2 / 3 / 90) ** 0.5, rel=0.1)


def test_perplexity_of_texts_weighs_them_by_their_tokens() -> None:
    draws = Draws.of([[10.0, 5.0], [2.0, 20.0]], perplexity)
    assert draws.value == pytest.approx(float(np.exp(12 / 25)))


def test_average_of_tasks_is_the_plain_mean_and_needs_all_of_them() -> None:
    one, other = (Draws.of([[hit, 1.0] for hit in hits], share) for hits in ([1.0, 0.0], [1.0, 1.0, 1.0, 0.0]))
    assert average([one, other]).value == pytest.approx(0.625)
    assert average([one, None]) is None


def test_over_seeds_keeps_the_spread_between_seeds() -> None:
    seeds = [Draws(value, torch.full((RESAMPLES,), value, dtype=torch.float64), 10) for value in (0.2, 0.5, 0.8)]
    mean = over_seeds(seeds).mean()
    assert mean.value == pytest.approx(0.5)
    assert mean.low < 0.35 and mean.high > 0.65


def test_over_seeds_on_the_same_units_counts_them_once() -> None:
    parts = [Draws.of([[float(i % k == 0), 1.0] for i in range(20)], share) for k in (2, 3, 5)]
    assert over_seeds(parts).n == 60 and over_seeds(parts, same_units=True).n == 20


def test_an_infinite_resample_is_an_end_of_the_interval_and_no_nan() -> None:
    draws = Draws(2.0, torch.cat([torch.full((900,), 2.0), torch.full((100,), float("inf"))]), 9)
    assert (draws.mean().low, draws.mean().high) == (2.0, float("inf"))
