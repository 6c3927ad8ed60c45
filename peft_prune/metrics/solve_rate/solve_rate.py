"""Solve rate of word problems."""

from __future__ import annotations

from typing import ClassVar

from peft_prune.evaluation import SCORERS
from peft_prune.metrics import base


class SolveRate(base.ShareMetric):
    """Solve rate of word problems."""

    figure: ClassVar[str] = "solve_rate"
    summary: ClassVar[str] = (
        "The share of answers whose number behind ####, else whose last number, is that of the reference."
    )
    predictions: ClassVar[str] = "generated solutions"
    references: ClassVar[str | None] = "reference solutions, as in GSM8K"
    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2110.14168",)
    example: ClassVar[base.Example] = {"predictions": ["2 + 2 = 4. #### 4"], "references": ["#### 4"]}

    def counts(self, prediction: str, reference: str) -> bool:
        return SCORERS["solve_rate"](prediction, [reference])
