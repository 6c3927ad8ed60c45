"""Exact match of answers to open questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft_prune.evaluation import exactly_matches
from peft_prune.metrics import base


class QuestionMatch(base.ShareMetric):
    """Exact match of answers to open questions."""

    figure: ClassVar[str] = "exact_match"
    summary: ClassVar[str] = (
        "The share of answers that are one of the right ones, without case, punctuation, articles and surplus space."
    )
    predictions: ClassVar[str] = "generated answers"
    references: ClassVar[str | None] = "every right answer to each question, a list of texts"
    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1606.05250",)
    example: ClassVar[base.Example] = {"predictions": ["The Nile"], "references": [["Nile", "River Nile"]]}
    columns: ClassVar[Mapping[str, Any]] = {"predictions": base.TEXT, "references": base.TEXTS}

    def counts(self, prediction: str, reference: Sequence[str]) -> bool:
        return exactly_matches(prediction, reference)
