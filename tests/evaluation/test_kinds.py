"""Which direction of a figure is better is said in one place, and all that shows figures follows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peft_prune.evaluation import KINDS, SCORERS, kind_of
from peft_prune.evaluation.kinds import label
from peft_prune.experiment.results import EDITING
from peft_prune.experiment.summary import COMPARED, SHOWN
from peft_prune.metrics import METRICS
from peft_prune.metrics.space import metric_class
from peft_prune.reporting.measured import evaluation_table

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_every_figure_that_the_package_names_is_known() -> None:
    named = {*EDITING, *SHOWN, *COMPARED, *SCORERS, *(metric_class(name).figure for name in METRICS)}
    assert named - set(KINDS) == set()


def test_only_of_perplexity_less_is_better() -> None:
    assert {name for name, kind in KINDS.items() if not kind.higher_is_better} == {"perplexity"}
    assert {name for name, kind in KINDS.items() if kind.bounds is None} == {"perplexity", "fluency"}


def test_the_documentation_gives_the_same_directions() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|$", DOCS.read_text(encoding="utf-8"), re.M)
    assert len(rows) >= 10
    assert {name: answer == "yes" for name, answer in rows} == {
        name: kind_of(name).higher_is_better for name, _ in rows
    }


@pytest.mark.parametrize(
    ("name", "aggregation", "shown"),
    [
        ("summarization/rouge2", "mean", "summarization/rouge2 ↑"),
        ("my own/perplexity", "exp of the mean", "my own/perplexity ↓"),
        ("sums_of_three", "share", "sums of three ↑"),
        ("geography/capitals", "share", "geography/capitals ↑"),
    ],
)
def test_a_name_that_a_user_gave_has_a_kind(name: str, aggregation: str, shown: str) -> None:
    assert (kind_of(name).aggregation, label(name)) == (aggregation, shown)


def test_the_report_points_to_where_a_figure_is_better() -> None:
    one = {"value": 0.5, "n": 4, "low": 0.1, "high": 0.9}
    moment = {"efficacy_greedy": one, "perplexity": 3.0, "abilities": {"summarization/rouge1": one}}
    table = evaluation_table({"before": moment, "after": moment})
    names = [row[0] if isinstance(row[0], str) else row[0].text for row in table.rows]
    assert names == ["efficacy, free answers ↑", "perplexity ↓", "summarization: rouge1 ↑"]
