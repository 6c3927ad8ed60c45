"""Recall: whether facts that no edit names are still known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets

from peft_prune.evaluation import Proportion
from peft_prune.metrics import base


class Recall(base.EditMetric):
    """Recall: whether facts that no edit names are still known."""

    figure: ClassVar[str] = "recall"
    summary: ClassVar[str] = "The share of facts whose object begins with the most probable token after the prompt."
    predictions: ClassVar[str] = "the most probable token after each prompt, as its id"
    references: ClassVar[str | None] = "the first token of each object, as its id"
    example: ClassVar[base.Example] = {"predictions": [17, 4], "references": [17, 5]}

    def inputs(self) -> list[Mapping[str, Any]]:
        return [{name: datasets.Value("int64") for name in ("predictions", "references")}]

    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Proportion]:
        pairs = zip(predictions, references or (), strict=True)
        return {"recall": Proportion.of(one == other for one, other in pairs)}
