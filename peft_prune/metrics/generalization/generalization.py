"""Generalization: whether an edit holds on paraphrases."""

from __future__ import annotations

from typing import ClassVar

from peft_prune.metrics import base


class Generalization(base.PreferenceMetric):
    """Generalization: whether an edit holds on paraphrases."""

    figure: ClassVar[str] = "generalization_greedy"
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
    example: ClassVar[base.Example] = {"predictions": [" Rome, Italy", " Paris"], "references": ["Rome", "Rome"]}
