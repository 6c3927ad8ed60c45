"""Solve rate of word problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft_prune.evaluation import SCORERS, Proportion
from peft_prune.metrics import base


class SolveRate(base.EditMetric):
    """Solve rate of word problems."""

    figure: ClassVar[str] = "solve_rate"
    summary: ClassVar[str] = (
        "The share of answers whose number behind ####, else whose last number, is that of the reference."
    )
    predictions: ClassVar[str] = "generated solutions"
    references: ClassVar[str | None] = "reference solutions, as in GSM8K"
    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2110.14168",)
    example: ClassVar[base.Example] = {"predictions": ["2 + 2 = 4. #### 4"], "references": ["#### 4"]}

    def inputs(self) -> list[Mapping[str, Any]]:
        return [{"predictions": base.TEXT, "references": base.TEXT}]

    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Proportion]:
        pairs = zip(predictions, references or (), strict=True)
        return {"solve_rate": Proportion.of(SCORERS["solve_rate"](answer, [right]) for answer, right in pairs)}
