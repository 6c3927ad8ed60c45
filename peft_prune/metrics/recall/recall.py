"""Recall: whether facts that no edit names are still known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from peft_prune.metrics import base


class Recall(base.ShareMetric):
    """Recall: whether facts that no edit names are still known."""

    figure: ClassVar[str] = "recall"
    summary: ClassVar[str] = "The share of facts whose object begins with the most probable token after the prompt."
    predictions: ClassVar[str] = "the most probable token after each prompt, as its id"
    references: ClassVar[str | None] = "the first token of each object, as its id"
    example: ClassVar[base.Example] = {"predictions": [17, 4], "references": [17, 5]}
    columns: ClassVar[Mapping[str, Any]] = {"predictions": base.WHOLE_NUMBER, "references": base.WHOLE_NUMBER}

    def counts(self, prediction: int, reference: int) -> bool:
        return prediction == reference
