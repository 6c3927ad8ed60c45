"""Generalization: whether an edit holds on paraphrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft_prune.evaluation import Proportion
from peft_prune.generation import answers_with
from peft_prune.metrics import base


class Generalization(base.EditMetric):
    """Generalization: whether an edit holds on paraphrases."""

    summary: ClassVar[str] = (
        "The share of paraphrase prompts that the edited model continues, by free greedy generation, with the new "
        "target; by probability, the share after which the new target is more probable than the true one."
    )
    predictions: ClassVar[str] = (
        "what the edited model answered, as texts; with config_name='probability' the mean log-probability of "
        "the new target, as numbers"
    )
    references: ClassVar[str | None] = (
        "the new target of each, as texts; with 'probability' the mean log-probability of the true one"
    )
    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2202.05262", "https://arxiv.org/abs/2405.16821")
    configurations: ClassVar[tuple[str, ...]] = ("default", "probability")

    def inputs(self) -> list[Mapping[str, Any]]:
        kind = base.NUMBER if self.config_name == "probability" else base.TEXT
        return [{"predictions": kind, "references": kind}]

    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Proportion]:
        pairs = zip(predictions, references or (), strict=True)
        if self.config_name == "probability":
            return {"generalization": Proportion.of(one > other for one, other in pairs)}
        return {"generalization_greedy": Proportion.of(answers_with(one, other) for one, other in pairs)}
