"""The modules of `evaluate`: loaded from their folders without a network, against the plain computations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import evaluate
import pytest
from rouge_score.rouge_scorer import RougeScorer

from peft_prune.evaluation import wilson_interval
from peft_prune.metrics import METRICS, metric_path

ANSWERS = [" Rome, Italy", " Indiana", " the Nile", " Paris"]
TARGETS = ["Rome", "India", "The Nile", "Lyon"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))


def load(name: str, *configuration: str) -> Any:
    return evaluate.load(metric_path(name), *configuration)


def test_there_is_a_module_for_every_figure() -> None:
    assert set(METRICS) == {
        *("efficacy", "generalization", "locality", "portability", "fluency", "edit_score", "recall", "perplexity"),
        *("solve_rate", "summary_rouge", "question_match", "label_accuracy"),
    }


@pytest.mark.parametrize("name", ["efficacy", "generalization"])
def test_targets_count_by_greedy_answer_or_by_probability(name: str) -> None:
    found = load(name).compute(predictions=ANSWERS, references=TARGETS)
    low, high = wilson_interval(2, 4)
    assert found == {
        f"{name}_greedy": 0.5,
        f"{name}_greedy_n": 4,
        f"{name}_greedy_low": pytest.approx(low),
        f"{name}_greedy_high": pytest.approx(high),
    }
    found = load(name, "probability").compute(predictions=[-1.0, -2.0, -3.0], references=[-2.0, -1.0, -4.0])
    assert (found[name], found[f"{name}_n"]) == (pytest.approx(2 / 3), 3)


def test_locality_compares_with_the_base_models_own_answer() -> None:
    found = load("locality").compute(predictions=[" Paris", " Madrid"], references=["  paris ", " Lisbon"])
    assert found["locality_greedy"] == 0.5
    found = load("locality", "probability").compute(predictions=[-1.0], references=[-0.5])
    assert found["locality"] == 0.0


def test_portability_takes_any_of_the_right_answers() -> None:
    found = load("portability").compute(
        predictions=[" the euro", " a pound"], references=[["euro", "the euro"], ["yen"]]
    )
    assert found["portability_greedy"] == 0.5


def test_fluency_is_the_weighted_entropy_of_n_grams() -> None:
    found = load("fluency").compute(predictions=["a b c d", "a a a a"])
    # "a b c d" has three different 2-grams and two different 3-grams; "a a a a" one of each
    assert found["fluency"] == pytest.approx((2 / 3 * math.log2(3) + 4 / 3 * math.log2(2)) / 2 / 2)


def test_the_edit_score_is_the_harmonic_mean_over_all_prompts() -> None:
    found = load("edit_score").compute(predictions=[[[1.0], [1.0, 0.0], [1.0]], [[1.0], [0.0, 0.0], [1.0]]])
    assert found["edit_score"] == pytest.approx(3 / (1 + 4 + 1))
    with pytest.raises(ValueError, match=r"edit 0: .* must be three lists of 0 and 1"):
        load("edit_score").compute(predictions=[[[0.5], [1.0], [1.0]]])


def test_recall_and_perplexity() -> None:
    assert load("recall").compute(predictions=[7, 4], references=[7, 5])["recall"] == 0.5
    found = load("perplexity").compute(predictions=[6.0, 3.0, 0.0], references=[2, 4, 0])
    assert (found["perplexity"], found["perplexity_n"]) == (pytest.approx(math.exp(9 / 6)), 2)
    assert found["perplexity_low"] <= math.exp(1.5) <= found["perplexity_high"]


def test_the_four_abilities() -> None:
    found = load("solve_rate").compute(predictions=["so #### 1,200", "it is 3"], references=["#### 1200", "#### 4"])
    assert found["solve_rate"] == 0.5
    found = load("question_match").compute(predictions=["The Nile!", "Po"], references=[["Nile", "x"], ["Rhine"]])
    assert found["exact_match"] == 0.5
    labels = ["entailment", "not_entailment", "entailment"]
    answers = ["Entailment.", "not entailment", "not_entailment"]
    assert load("label_accuracy").compute(predictions=answers, references=labels)["accuracy"] == pytest.approx(2 / 3)
    found = load("summary_rouge").compute(predictions=["Ann comes on Monday"], references=["Ann will come on Monday"])
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(
        "Ann will come on Monday", "Ann comes on Monday"
    )
    assert {name: found[name] for name in expected} == {n: pytest.approx(s.fmeasure) for n, s in expected.items()}


def test_modules_are_combined() -> None:
    both = evaluate.combine([metric_path("efficacy"), metric_path("generalization"), metric_path("locality")])
    found = both.compute(predictions=ANSWERS, references=TARGETS)
    assert (found["efficacy_greedy"], found["generalization_greedy"], found["locality_greedy"]) == (0.5, 0.5, 0.25)
    assert found["locality_greedy_n"] == 4


def test_an_unknown_module_or_configuration_is_named() -> None:
    with pytest.raises(ValueError, match="metric: 'speed' is not one of edit_score, efficacy"):
        metric_path("speed")
    with pytest.raises(ValueError, match="config_name: 'sampled' is not one of default, probability"):
        load("efficacy", "sampled")
