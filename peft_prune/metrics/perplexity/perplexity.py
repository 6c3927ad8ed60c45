"""Perplexity over all tokens of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft_prune.evaluation import Mean, perplexity_figure
from peft_prune.metrics import base


class Perplexity(base.EditMetric):
    """Perplexity over all tokens of texts."""

    figure: ClassVar[str] = "perplexity"
    summary: ClassVar[str] = "exp of the total negative log-likelihood over the total number of predicted tokens."
    predictions: ClassVar[str] = "negative log-likelihood of each text, in nats"
    references: ClassVar[str | None] = "number of predicted tokens of each text"
    example: ClassVar[base.Example] = {"predictions": [12.5, 30.1], "references": [4, 11]}

    def inputs(self) -> list[Mapping[str, Any]]:
        return [{"predictions": base.NUMBER, "references": base.WHOLE_NUMBER}]

    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Mean]:
        return {"perplexity": perplexity_figure(list(zip(predictions, references or (), strict=True)))}
