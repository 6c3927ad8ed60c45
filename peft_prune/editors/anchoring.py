"""Norm anchoring of v*: every value gets the norm that values have in the unedited model (NAS, Liu et al. 2026)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..requests import EditRequest
from .names import NAMES
from .values import ValueSettings, optimize_values

KEPT = 0.95
"""Share of the stand-ins whose norms are averaged, the smallest ones: a few searches end far out."""

PROMPTS = ("{} is known for", "{} is often compared to", "The name of {} is tied to", "What comes to mind at {} is")
"""What stand-ins ask; they hold for no model more than for another."""


def anchor_norm(
    model: Any, tokenizer: PreTrainedTokenizerBase, layer: int, settings: ValueSettings, count: int
) -> float:
    """The reference norm: the mean ‖v*‖ of so many stand-ins on the unedited model, without the largest.

    The published code takes them from a data set of edits (util/vstar_stats.py of the authors' repository); here a
    well-known name is to be continued by another one, since an editor has no data set at hand.

    Args:
        model: The unedited model.
        tokenizer: Its tokenizer.
        layer: Where v* is searched.
        settings: How, without an anchor.
        count: Stand-ins, at least 1.
    """
    requests = [
        EditRequest(PROMPTS[i % len(PROMPTS)], NAMES[i % len(NAMES)], NAMES[(7 * i + 3) % len(NAMES)], ask="plain")
        for i in range(count)
    ]
    values = optimize_values(model, tokenizer, requests, ("",), layer, replace(settings, anchor=None, measures=True))
    norms = sorted(float((value.mlp_output + value.delta).norm()) for value in values)
    kept = norms[: max(1, round(KEPT * len(norms)))]
    return sum(kept) / len(kept)
