"""Norm anchoring of v*: every value gets the norm that values have in the unedited model (NAS, Liu et al. 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..errors import InvalidRequestError
from ..models.tokenization import text_ids
from ..processes import same
from ..requests import EditRequest
from .names import NAMES
from .own_texts import own_texts
from .tokens import tokenize_prompts
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
    well-known name is to be continued by another one, since an editor has no data set at hand. Where the tokenizer
    knows no names, they are beginnings of texts that the model writes, to be continued by the end of another.

    Args:
        model: The unedited model.
        tokenizer: Its tokenizer.
        layer: Where v* is searched.
        settings: How, without an anchor.
        count: Stand-ins, at least 1.
    """
    requests = _stand_ins(model, tokenizer, count)
    with torch.enable_grad():  # what is prepared is prepared without
        values = optimize_values(
            model, tokenizer, requests, ("",), layer, replace(settings, anchor=None, measures=True)
        )
    norms = sorted(float((value.mlp_output + value.delta).norm()) for value in values)
    kept = norms[: max(1, round(KEPT * len(norms)))]
    return sum(kept) / len(kept)


def _stand_ins(model: Any, tokenizer: PreTrainedTokenizerBase, count: int) -> list[EditRequest]:
    names = [name for name in NAMES if _is_known(tokenizer, name)]
    if len(names) > 1:
        return [_asked(PROMPTS[i % len(PROMPTS)], names, i) for i in range(count)]
    # another process's device may draw another token
    texts = same("stand-ins", lambda: own_texts(model, tokenizer, 12 * count, length=12, progress=False))
    pieces = list(dict.fromkeys(" ".join(text.split()[:4]) for text in texts))
    pieces = [piece for piece in pieces if piece and not set("{}") & set(piece)]
    if len(pieces) < 2:
        raise InvalidRequestError("norm_anchor: the model writes no texts to take stand-ins from; 0 does without")
    return [_asked("{}", pieces, i) for i in range(count)]


def _asked(prompt: str, names: Sequence[str], number: int) -> EditRequest:
    own = number % len(names)
    other = (own + 1 + number // len(names) + number % 7) % len(names)
    return EditRequest(prompt, names[own], names[other if other != own else (own + 1) % len(names)], ask="plain")


def _is_known(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    ids = text_ids(tokenizer, [f"{name} {PROMPTS[0].replace('{} ', '')}"])[0]
    try:
        tokenize_prompts(tokenizer, [PROMPTS[0]], name)
    except InvalidRequestError:
        return False
    return bool(ids) and tokenizer.unk_token_id not in ids
