"""Fluency: how varied a model's texts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft_prune.evaluation import Mean, ngram_entropy
from peft_prune.metrics import base


class Fluency(base.EditMetric):
    """Fluency: how varied a model's texts are."""

    figure: ClassVar[str] = "fluency"
    summary: ClassVar[str] = (
        "The weighted mean of the 2- and 3-gram entropies of generated texts, in bits; a model that repeats itself has "
        "little."
    )
    predictions: ClassVar[str] = "generated texts"
    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2202.05262",)
    example: ClassVar[base.Example] = {"predictions": ["a text of several words"]}

    def inputs(self) -> list[Mapping[str, Any]]:
        return [{"predictions": base.TEXT}]

    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Mean]:
        return {"fluency": Mean.of(ngram_entropy(text) for text in predictions)}
