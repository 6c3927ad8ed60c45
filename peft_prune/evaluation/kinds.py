"""Every figure by name: what it says, which direction is better, and how it is put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Aggregation = Literal["share", "mean", "harmonic mean", "exp of the mean"]


@dataclass(frozen=True)
class FigureKind:
    """What a figure of some name is.

    Args:
        description: What it says of a model.
        aggregation: Of its units: the share of successes, the mean, the harmonic mean of shares, or exp of a mean loss.
        higher_is_better: Or lower.
        bounds: The least and the largest that it can be; None where nothing bounds it.
    """

    description: str
    aggregation: Aggregation = "share"
    higher_is_better: bool = True
    bounds: tuple[float, float] | None = (0.0, 1.0)

    @property
    def arrow(self) -> str:
        """Points to where it is better."""
        return "↑" if self.higher_is_better else "↓"

    @property
    def advice(self) -> str:
        """The direction in words."""
        return f"{'Higher' if self.higher_is_better else 'Lower'} is better."


ABILITY = FigureKind("The share of an ability's items that are solved.")
"""What a figure is whose name the user has given."""

_SCORE = "The harmonic mean of efficacy, generalization and locality"
_ROUGE = "How much summaries share with their references, by"

KINDS: Mapping[str, FigureKind] = MappingProxyType(
    {
        "efficacy": FigureKind("The share of edits after whose own prompt the new target is more probable."),
        "efficacy_greedy": FigureKind("The share of edits whose own prompt is answered with the new target."),
        "generalization": FigureKind("The share of paraphrases after which the new target is more probable."),
        "generalization_greedy": FigureKind("The share of paraphrases that are answered with the new target."),
        "locality": FigureKind("The share of other subjects' prompts after which the true target is more probable."),
        "locality_greedy": FigureKind("The share of other subjects' prompts that are answered as by the base model."),
        "efficacy_chat": FigureKind("The share of edits whose question is answered with the new target in chat."),
        "generalization_chat": FigureKind("The share of paraphrases that are answered with the new target in chat."),
        "locality_chat": FigureKind("The share of other subjects' questions that are answered in chat as by the base."),
        "portability_greedy": FigureKind("The share of what follows from edits that is answered accordingly."),
        "score": FigureKind(f"{_SCORE}.", "harmonic mean"),
        "score_greedy": FigureKind(f"{_SCORE}, by greedy answers.", "harmonic mean"),
        "edit_score": FigureKind(f"{_SCORE}.", "harmonic mean"),
        "applied": FigureKind("The share of edits that took when they were made."),
        "recall": FigureKind("The share of facts that no edit names and that are still known."),
        "abilities": FigureKind("The mean over all abilities that were measured.", "mean"),
        "solve_rate": FigureKind("The share of word problems whose final number is right."),
        "exact_match": FigureKind("The share of open questions that are answered with one of the right answers."),
        "accuracy": FigureKind("The share of generated labels that are right."),
        "match": FigureKind("The share of items whose whole answer is right."),
        "rouge1": FigureKind(f"{_ROUGE} single words.", "mean"),
        "rouge2": FigureKind(f"{_ROUGE} pairs of words.", "mean"),
        "rougeL": FigureKind(f"{_ROUGE} the longest common sequence.", "mean"),
        "fluency": FigureKind("How varied a model's texts are: the n-gram entropy, in bits.", "mean", bounds=None),
        "perplexity": FigureKind(
            "How little a model expects plain text.", "exp of the mean", higher_is_better=False, bounds=None
        ),
    }
)
"""The one place that says which direction of a figure is better."""


def kind_of(name: str) -> FigureKind:
    """The kind of a figure by its name in results, such as ``recall``, ``summarization/rouge1`` or an ability's own."""
    return KINDS.get(name) or KINDS.get(name.rpartition("/")[2], ABILITY)


def label(name: str) -> str:
    """A figure's name for readers, with an arrow to where it is better."""
    return f"{name.replace('_', ' ')} {kind_of(name).arrow}"
