"""Efficacy: whether an edit holds on its own prompt."""

from __future__ import annotations

from typing import ClassVar

from peft_prune.metrics import base


class Efficacy(base.PreferenceMetric):
    """Efficacy: whether an edit holds on its own prompt."""

    figure: ClassVar[str] = "efficacy_greedy"
    summary: ClassVar[str] = (
        "The share of edits whose bare prompt the edited model continues, by free greedy generation, with the new "
        "target; by probability, the share after whose bare prompt the new target is more probable than the true one."
    )
    predictions: ClassVar[str] = (
        "what the edited model answered, as texts; with config_name='probability' the mean log-probability of "
        "the new target, as numbers"
    )
    references: ClassVar[str | None] = (
        "the new targets, as texts; with 'probability' the mean log-probability of the true one"
    )
    example: ClassVar[base.Example] = {"predictions": [" Rome, Italy"], "references": ["Rome"]}
