"""Fluency: how varied the words of generated text are; a model that repeats itself has little."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InvalidRequestError
from ..models.generation import greedy_answers
from ..models.inference import Progress, max_positions
from ..models.tokenization import prompt_ids
from ..requests import EditRequest

WEIGHTS = ((2, 2 / 3), (3, 4 / 3))
"""Length of the n-grams and their weight, as in the published code (``n_gram_entropy`` of kmeng01/rome)."""


def ngram_entropy(text: str, weights: Sequence[tuple[int, float]] = WEIGHTS) -> float:
    """Weighted mean of the n-gram entropies of a text, in bits (Zhang et al. 2018; Meng et al. 2022, "GE").

    The words are those between spaces, where the published code takes NLTK's tokens.

    Args:
        text: Generated text; one with fewer words than an n-gram has entropy 0 there.
        weights: Pairs of n and weight; the weighted entropies are averaged over the pairs.

    Raises:
        ValueError: There is no pair.
    """
    if not weights:
        raise ValueError("weights: is empty, at least one pair of n and weight is needed")
    words = text.split()
    return sum(weight * _entropy(words, n) for n, weight in weights) / len(weights)


def request_entropies(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    max_new_tokens: int = 100,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[float]:
    """N-gram entropy of what a model goes on to say of each request's subject, the mean over its generation prompts.

    Generation is greedy, where the published code samples from the five most probable tokens: a figure that chance has
    no part in, and lower than the published ones. Compare it with the base's only.

    Args:
        model: A causal language model of transformers, or a PEFT model of one.
        tokenizer: Its tokenizer.
        requests: Those without generation prompts are continued from their bare prompt.
        max_new_tokens: Length of the generated text; less where the model's positions end.
        batch_size: Most prompts in one batch.
        progress: Called with the number of prompts done and their total.

    Raises:
        InvalidRequestError: A prompt leaves no room in the model's positions.
    """
    prompts = [request.generation_prompts or (request.text,) for request in requests]
    flat = [prompt for own in prompts for prompt in own]
    positions = max_positions(model)
    lengths = [len(ids) for ids in prompt_ids(tokenizer, flat)]
    limits = [max_new_tokens if positions is None else min(max_new_tokens, positions - own) for own in lengths]
    for prompt, limit in zip(flat, limits, strict=True):
        if limit < 1:
            raise InvalidRequestError(
                f"prompt: {prompt!r} leaves no room for a token in the model's {positions} positions"
            )
    texts = iter(
        greedy_answers(model, tokenizer, flat, max_new_tokens=limits, batch_size=batch_size, progress=progress)
    )
    return [sum(ngram_entropy(next(texts)) for _ in own) / len(own) for own in prompts]


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values()) if total else 0.0
