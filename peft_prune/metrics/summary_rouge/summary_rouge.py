"""ROUGE-1, ROUGE-2 and ROUGE-L of summaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft_prune.evaluation import Mean, rouge_scores
from peft_prune.metrics import base


class SummaryRouge(base.EditMetric):
    """ROUGE-1, ROUGE-2 and ROUGE-L of summaries."""

    figure: ClassVar[str] = "rougeL"
    summary: ClassVar[str] = (
        "F-measures of ROUGE-1, ROUGE-2 and ROUGE-L with stemming, of each summary against its best reference."
    )
    predictions: ClassVar[str] = "generated summaries"
    references: ClassVar[str | None] = "one reference for each, or a list of them"
    sources: ClassVar[tuple[str, ...]] = ("https://aclanthology.org/W04-1013",)
    example: ClassVar[base.Example] = {
        "predictions": ["Ann comes on Monday."],
        "references": ["Ann will come on Monday."],
    }

    def inputs(self) -> list[Mapping[str, Any]]:
        return [
            {"predictions": base.TEXT, "references": base.TEXTS},
            {"predictions": base.TEXT, "references": base.TEXT},
        ]

    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Mean]:
        known = [[one] if isinstance(one, str) else list(one) for one in references or ()]
        return {name: Mean.of(values, (0.0, 1.0)) for name, values in rouge_scores(predictions, known).items()}
