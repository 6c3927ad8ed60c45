"""Portability: whether what follows from an edit is answered accordingly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft_prune.metrics import base
from peft_prune.models.answers import answers_with


class Portability(base.ShareMetric):
    """Portability: whether what follows from an edit is answered accordingly."""

    figure: ClassVar[str] = "portability_greedy"
    summary: ClassVar[str] = (
        "The share of questions whose answer follows from an edit and that the edited model answers, by free greedy "
        "generation, with one of the right answers."
    )
    predictions: ClassVar[str] = "what the edited model answered, as texts"
    references: ClassVar[str | None] = "every right answer to each question, a list of texts"
    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2401.01286",)
    example: ClassVar[base.Example] = {"predictions": [" the euro"], "references": [["euro", "the euro"]]}
    columns: ClassVar[Mapping[str, Any]] = {"predictions": base.TEXT, "references": base.TEXTS}

    def counts(self, prediction: str, reference: Sequence[str]) -> bool:
        return any(answers_with(prediction, right) for right in reference)
