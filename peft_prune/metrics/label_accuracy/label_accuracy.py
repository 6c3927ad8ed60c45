"""Accuracy of generated labels."""

from __future__ import annotations

from typing import ClassVar

from peft_prune.evaluation import has_label
from peft_prune.metrics import base


class LabelAccuracy(base.ShareMetric):
    """Accuracy of generated labels."""

    figure: ClassVar[str] = "accuracy"
    summary: ClassVar[str] = "The share of generated texts whose first word is the label."
    predictions: ClassVar[str] = "generated texts"
    references: ClassVar[str | None] = "the labels, such as entailment or not_entailment"
    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1804.07461",)
    example: ClassVar[base.Example] = {"predictions": ["entailment"], "references": ["entailment"]}

    def counts(self, prediction: str, reference: str) -> bool:
        return has_label(prediction, reference)
