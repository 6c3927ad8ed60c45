"""Retention texts that the model writes itself, where a user gives none."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..editors.contexts import STARTS
from ..models.decoder import unwrapped
from ..models.generation import decoded
from ..models.halves import Halves
from ..models.inference import input_device, undisturbed
from ..models.tokenization import text_ids
from ..moving import moving_bar

BATCH = 128


def own_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    seed: int = 0,
    *,
    progress: bool = False,
) -> list[str]:
    """So many texts of ``length`` tokens, sampled from the model as it is, at temperature 1.

    They begin with the tokenizer's BOS where it has one, else with a few common words. They are deterministic by
    ``seed`` and leave torch's own random state alone.
    """
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = []
    with (
        undisturbed(model),
        Halves([unwrapped(model)], input_device(model)).acting(backward=False),
        moving_bar(total=count, desc="Retention texts", unit=" texts", disable=not progress) as bar,
    ):
        for start in range(0, count, BATCH):
            starts = _starts(tokenizer, range(start, min(start + BATCH, count)))
            rows += _sampled(model, tokenizer, starts, length, generator)
            bar.update(len(starts))
    texts = [decoded(tokenizer, row) for row in rows]
    return [text for text in texts if text.strip()]


def _starts(tokenizer: PreTrainedTokenizerBase, numbers: range) -> list[int]:
    if tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id] * len(numbers)
    firsts = [ids[0] for ids in text_ids(tokenizer, STARTS) if ids]
    return [firsts[number % len(firsts)] for number in numbers]


def _sampled(
    model: Any, tokenizer: PreTrainedTokenizerBase, starts: list[int], length: int, generator: torch.Generator
) -> list[list[int]]:
    inner, device = unwrapped(model), input_device(model)
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.long)
    ids = torch.tensor(starts, device=device)[:, None]
    cache, last = None, ids
    for _ in range(length):
        output = inner(input_ids=last if cache is not None else ids, past_key_values=cache, use_cache=True)
        cache = getattr(output, "past_key_values", None)
        logits = output.logits[:, -1].float().cpu()
        logits[:, special] = -torch.inf
        last = torch.multinomial(logits.softmax(-1), 1, generator=generator).to(device)
        ids = torch.cat([ids, last], dim=1)
    return ids.tolist()
