"""The table for terminals."""

from __future__ import annotations

import math

from rich.console import Console

from peft_prune.evaluation import Proportion, comparison_table


def shown(columns: dict) -> str:
    console = Console(width=140, record=True, quiet=False, file=open("/dev/null", "w"))
    console.print(comparison_table(columns, title="edits"))
    return console.export_text()


def column(hits: int, perplexity: float | None) -> dict:
    return {
        "efficacy_greedy": Proportion.of([True] * hits + [False] * (10 - hits)).to_json(),
        "recall": Proportion.of([]).to_json(),
        "perplexity": perplexity,
        "abilities": {"reasoning": Proportion.of([True, False]).to_json()},
    }


def test_each_figure_stands_in_a_row_with_its_interval_and_n() -> None:
    text = shown({"before": column(0, 10.0), "edited": column(9, 12.345)})
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") == 4}
    assert set(rows) == {"efficacy greedy ↑ (n = 10)", "perplexity ↓", "reasoning ↑ (n = 2)"}
    assert "0.000 [0.000, 0.278]" in rows["efficacy greedy ↑ (n = 10)"]
    assert "0.900 [0.596, 0.982]" in rows["efficacy greedy ↑ (n = 10)"]
    assert "12.35" in rows["perplexity ↓"] or "12.34" in rows["perplexity ↓"]


def test_a_missing_or_infinite_figure_is_shown_as_such() -> None:
    text = shown({"before": {"perplexity": 3.0}, "after": {"perplexity": math.inf}, "other": {}})
    assert "inf" in text and "–" in text
