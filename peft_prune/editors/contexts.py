"""Prefixes that a fact must hold behind: short texts that the model itself writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..models.decoder import unwrapped
from ..models.inference import input_device, padded, undisturbed
from ..models.joining import separator_between
from ..models.tokenization import opening_ids, text_ids, written_opening
from ..processes import same

STARTS = ("The", "Therefore", "Because", "I", "You")


def generate_contexts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[tuple[int, int]] = ((5, 10), (10, 10)),
    *,
    top_k: int = 5,
    seed: int = 0,
) -> tuple[str, ...]:
    """The empty prefix and ``count`` sampled ones of each ``(length, count)`` (Meng et al. 2022, appendix E.5).

    The published code samples from the five most probable tokens, as this does, on starts that it has in common with
    MEMIT's. Prefixes are deterministic by ``seed`` and leave torch's own random state alone.

    Args:
        model: The model that writes them.
        lengths: Pairs of tokens per prefix and number of prefixes.
        top_k: Sample among so many tokens.
        seed: Of the sampling.
    """

    def written() -> tuple[str, ...]:
        generator = torch.Generator().manual_seed(seed)
        prefixes = [""]
        with undisturbed(model):
            for length, count in lengths:
                starts = [STARTS[index % len(STARTS)] for index in range(count)]
                prefixes.extend(_sampled(model, tokenizer, starts, length, top_k, generator))
        return tuple(prefixes)

    # another process's device may draw another token
    return same("contexts", written)


def with_prefix(tokenizer: PreTrainedTokenizerBase, prefix: str, prompt: str) -> str:
    """``prompt`` behind ``prefix``; an empty prefix leaves the bare prompt.

    A BOS that the prompt begins with, as a chat template writes it, stays in front.
    """
    if not prefix:
        return prompt
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    written = written_opening(opening_ids(tokenizer), encoded["input_ids"])
    place = encoded["offset_mapping"][written - 1][1] if written else 0
    rest = prompt[place:]
    return prompt[:place] + prefix + separator_between(prefix, rest) + rest


def _sampled(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    starts: Sequence[str],
    length: int,
    top_k: int,
    generator: torch.Generator,
) -> list[str]:
    rows = [list(ids) for ids in text_ids(tokenizer, starts)]
    ends = set(tokenizer.all_special_ids)
    inner = unwrapped(model)
    for _ in range(length):
        ids, mask = padded(rows, left=False, device=input_device(model))
        logits = inner(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for index, row in enumerate(rows):
            scores = logits[index, len(row) - 1].float().cpu()
            scores[list(ends)] = -torch.inf
            values, tokens = scores.topk(min(top_k, len(scores) - len(ends)))
            row.append(int(tokens[torch.multinomial(values.softmax(0), 1, generator=generator)]))
    # a brace would be read as the subject's place
    texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
    return [" ".join(text.replace("{", " ").replace("}", " ").split()) + "." for text in texts]
