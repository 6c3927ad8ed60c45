"""Locality: whether an edit has left other subjects alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft_prune.evaluation import Proportion
from peft_prune.generation import normalized
from peft_prune.metrics import base


class Locality(base.EditMetric):
    """Locality: whether an edit has left other subjects alone."""

    summary: ClassVar[str] = (
        "The share of neighborhood prompts to which the edited model gives the base model's own greedy answer; by "
        "probability, the share after which the true target is still more probable than the new one."
    )
    predictions: ClassVar[str] = (
        "what the edited model answered, as texts; with config_name='probability' the mean log-probability of "
        "the true target, as numbers"
    )
    references: ClassVar[str | None] = (
        "what the unedited base model answered to the same prompts, as texts; with 'probability' the mean "
        "log-probability of the new one"
    )
    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2202.05262", "https://arxiv.org/abs/2405.16821")
    configurations: ClassVar[tuple[str, ...]] = ("default", "probability")

    def inputs(self) -> list[Mapping[str, Any]]:
        kind = base.NUMBER if self.config_name == "probability" else base.TEXT
        return [{"predictions": kind, "references": kind}]

    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Proportion]:
        pairs = zip(predictions, references or (), strict=True)
        if self.config_name == "probability":
            return {"locality": Proportion.of(one > other for one, other in pairs)}
        return {"locality_greedy": Proportion.of(normalized(one) == normalized(other) for one, other in pairs)}
