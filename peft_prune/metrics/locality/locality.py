"""Locality: whether an edit has left other subjects alone."""

from __future__ import annotations

from typing import ClassVar

from peft_prune.metrics import base
from peft_prune.models.answers import normalized


class Locality(base.PreferenceMetric):
    """Locality: whether an edit has left other subjects alone."""

    figure: ClassVar[str] = "locality_greedy"
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
    example: ClassVar[base.Example] = {"predictions": [" Paris", " Madrid"], "references": [" Paris", " Lisbon"]}

    def agrees(self, answer: str, reference: str) -> bool:
        return normalized(answer) == normalized(reference)
