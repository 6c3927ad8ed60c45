"""Accuracy of generated labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft_prune.evaluation import Proportion, has_label
from peft_prune.metrics import base


class LabelAccuracy(base.EditMetric):
    """Accuracy of generated labels."""

    figure: ClassVar[str] = "accuracy"
    summary: ClassVar[str] = "The share of generated texts whose first word is the label."
    predictions: ClassVar[str] = "generated texts"
    references: ClassVar[str | None] = "the labels, such as entailment or not_entailment"
    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1804.07461",)
    example: ClassVar[base.Example] = {"predictions": ["entailment"], "references": ["entailment"]}

    def inputs(self) -> list[Mapping[str, Any]]:
        return [{"predictions": base.TEXT, "references": base.TEXT}]

    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Proportion]:
        pairs = zip(predictions, references or (), strict=True)
        return {"accuracy": Proportion.of(has_label(answer, label) for answer, label in pairs)}
