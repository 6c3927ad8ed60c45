"""The harmonic mean of efficacy, generalization and locality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets

from peft_prune.evaluation import Mean, harmonic_score
from peft_prune.metrics import base


class EditScore(base.EditMetric):
    """The harmonic mean of efficacy, generalization and locality."""

    figure: ClassVar[str] = "edit_score"
    summary: ClassVar[str] = "The harmonic mean of efficacy, generalization and locality, the score of CounterFact."
    predictions: ClassVar[str] = (
        "for each edit three lists of outcomes, 0 or 1: of its own, its paraphrase and its neighborhood prompts"
    )
    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2202.05262",)
    example: ClassVar[base.Example] = {"predictions": [[[1.0], [1.0, 0.0], [1.0, 1.0]]]}

    def inputs(self) -> list[Mapping[str, Any]]:
        return [{"predictions": datasets.Sequence(base.NUMBERS)}]

    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Mean]:
        for index, parts in enumerate(predictions):
            if len(parts) != 3 or not all(value in (0.0, 1.0) for part in parts for value in part):
                raise ValueError(f"predictions: edit {index}: {parts} must be three lists of 0 and 1")
        kinds = ("efficacy", "generalization", "locality")
        outcomes = {kind: [parts[place] for parts in predictions] for place, kind in enumerate(kinds)}
        return {"edit_score": harmonic_score(outcomes)}
