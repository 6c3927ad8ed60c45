"""Stand-ins for edits, by which an editor learns what is normal for a model before its first edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import InvalidRequestError
from ..models.tokenization import text_ids
from ..processes import same
from .gradients import traced
from .own_texts import own_texts
from .running import merged, part_of
from .target_likelihood import TargetBatch, frozen

PROMPT_TOKENS = 12
"""Most tokens of a text's beginning that are gone on from."""

TARGET_TOKENS = 4
"""Tokens of another text that are asked for behind it."""

_AT_ONCE = 16


@dataclass(frozen=True)
class Rehearsed:
    """What was learnt.

    Args:
        features: Running statistics of [h, g] by module, (2, 1 + in + out) float32; see `running.part_of`.
        scales: Root mean square of what each module gives there.
    """

    features: Mapping[str, Tensor]
    scales: Mapping[str, float]


def rehearsed(
    model: Any, tokenizer: PreTrainedTokenizerBase, modules: Sequence[str], count: int, seed: int = 0
) -> Rehearsed:
    """Ask the beginning of each of so many own texts to go on as the next text begins, and see what modules read.

    A model does not expect such a target, as it does not expect that of an edit.

    Args:
        model: The unedited model.
        tokenizer: Its tokenizer.
        modules: Names in the base model.
        count: Stand-ins.
        seed: Of the texts.

    Raises:
        InvalidRequestError: The model writes no two texts that are long enough.
    """
    length = PROMPT_TOKENS + TARGET_TOKENS
    # another process's device may draw another token
    texts = same(
        "texts to rehearse with",
        lambda: own_texts(model, tokenizer, count * length, seed=seed, length=length, progress=False),
    )
    rows = [ids for ids in text_ids(tokenizer, texts) if len(ids) > TARGET_TOKENS + 1][: count + 1]
    if len(rows) < 2:
        raise InvalidRequestError("rehearsals: the model writes no texts of its own to rehearse with; 0 does without")
    pairs = [
        (row[: min(PROMPT_TOKENS, len(row) - TARGET_TOKENS)], other[-TARGET_TOKENS:])
        for row, other in zip(rows, (*rows[1:], rows[0]), strict=True)
    ]
    parts: dict[str, list[Tensor]] = {name: [] for name in modules}
    squares = dict.fromkeys(modules, 0.0)
    entries = dict.fromkeys(modules, 0)
    with frozen(model):
        for start in range(0, len(pairs), _AT_ONCE):
            batch = TargetBatch.of_ids(model, pairs[start : start + _AT_ONCE])
            found, _ = traced(model, batch, modules)
            for name, part in found.items():
                asked = (batch.labels >= 0).to(part.inputs.device)
                parts[name].append(part_of(torch.cat([part.inputs[asked], part.gradients[asked]], dim=1)))
                squares[name] += float(part.outputs[asked].double().square().sum())
                entries[name] += part.outputs[asked].numel()
    features = {name: state.float() for name, own in parts.items() if (state := merged(own)) is not None}
    return Rehearsed(features, {name: (squares[name] / entries[name]) ** 0.5 for name in modules})
