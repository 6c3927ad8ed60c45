"""Shares, differences and answers in words."""

from __future__ import annotations

import pytest

from peft_prune.evaluation.kinds import kind_of
from peft_prune.models.answers import whole_words
from peft_prune.reporting.hundreds import change, fewer, hundreds, relative_change
from peft_prune.reporting.words import of_hundred

SHARE = kind_of("recall")


def gap(value: float, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "none"),
        (1.0, "all"),
        (0.72, "about 72 of 100"),
        (0.002, "fewer than 1 of 100"),
        (0.999, "more than 99 of 100"),
    ],
)
def test_a_share_is_told_of_a_hundred(share: float, said: str) -> None:
    assert of_hundred(share) == said


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (gap(-0.031), "about 3 of 100 fewer"),
        (gap(-0.031, -0.058, -0.012), "about 3 of 100 fewer (1 to 6 fewer)"),
        (gap(0.2, 0.1, 0.31), "about 20 of 100 more (10 to 31 more)"),
        (gap(-0.03, -0.08, 0.02), "about 3 of 100 fewer, may be chance (8 fewer to 2 more)"),
        (gap(-0.03, -0.08, 0.0), "about 3 of 100 fewer, may be chance (none to 8 fewer)"),
        (gap(0.0, 0.0, 0.0), "no difference"),
        (gap(0.004), "less than 1 of 100 more"),
    ],
)
def test_a_difference_is_told_with_its_interval_and_whether_it_may_be_chance(difference, said: str) -> None:
    assert change(difference, SHARE) == said


def test_what_is_no_share_is_told_as_it_is() -> None:
    assert relative_change(2.1, 2.7) == "28.6 % higher" and relative_change(2.0, 1.0) == "50 % lower"
    assert relative_change(2.1, 2.1) == "no difference"
    assert change(gap(-0.25), kind_of("fluency")) == "0.25 lower"
    assert fewer(-0.08) == "about 8 of 100 fewer"


def test_a_figure_stands_with_its_interval() -> None:
    assert hundreds({"value": 0.7167, "low": 0.592, "high": 0.815}) == "72 (59 to 82)"
    assert hundreds({"value": None, "low": None, "high": None}) == "–" and hundreds(gap(0.5)) == "50"


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (" Seloburg. The comp", "Seloburg. The …"),
        (" Seloburg. The company ", "Seloburg. The company …"),
        (" Seloburg is large.", "Seloburg is large."),
        (" Sel", "Sel"),
        ("", ""),
        (" 東京 です", "東京 です"),
        (" a b\ufffd", "a …"),
        (" one\n two thr", "one two …"),
    ],
)
def test_an_answer_ends_at_a_whole_word(answer: str, shown: str) -> None:
    assert whole_words(answer) == shown


def test_an_answer_is_never_cut_so_that_its_target_is_gone() -> None:
    assert whole_words(" New York", "New York") == "New York"
    assert whole_words(" New York Ci", "New York") == "New York …"
