"""What probability a model gives to known tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.inference import (
    Progress,
    Steps,
    by_length,
    last_logits,
    length_batches,
    require_batch_size,
    require_fit,
    undisturbed,
)
from ..models.sharing import shared
from ..models.tokenization import Continuation


def token_log_probabilities(
    model: Any,
    continuations: Sequence[Continuation],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[Tensor]:
    """Log-probability of each target token, given the prompt and the target's tokens before it.

    Sequences that are the beginning of another one are read off that one, which in a causal model is the same: two
    one-token targets of one prompt cost one pass. Logits are computed where targets stand only, and the softmax is in
    float32 whatever the model's dtype.

    Args:
        model: A causal language model of transformers, or a PEFT model of one.
        continuations: Prompts and targets.
        batch_size: Most sequences in one batch.
        progress: Called with the number of sequences done and their total.

    Returns:
        For each continuation a float32 tensor ``(target tokens,)`` on the CPU.

    Raises:
        InvalidRequestError: A sequence does not fit the model.
    """
    # the last target token is predicted, never read
    inputs = [pair.prompt + pair.target[:-1] for pair in continuations]
    require_fit(model, [len(ids) for ids in inputs])
    carried = _carriers(inputs)
    sequences = sorted(carried, key=len, reverse=True)
    require_batch_size(batch_size)

    def scored(own: Sequence[tuple[int, ...]]) -> list[list[Tensor]]:
        found: list[list[Tensor]] = [[] for _ in own]
        steps = Steps(progress, len(sequences))
        with undisturbed(model):
            for batch in length_batches([len(ids) for ids in own], batch_size):
                rows = [own[place] for place in batch]
                readers = [carried[row] for row in rows]
                first = min(len(continuations[index].prompt) - 1 for indices in readers for index in indices)
                logits, offset = last_logits(model, rows, max(len(ids) for ids in rows) - first)
                for row, (place, indices) in enumerate(zip(batch, readers, strict=True)):
                    found[place] = [_read(logits[row], offset, continuations[index]) for index in indices]
                steps.done(len(batch))
        return found

    results: list[Tensor] = [torch.empty(0)] * len(continuations)
    for sequence, scores in zip(sequences, shared(model, "probabilities", sequences, scored), strict=True):
        for index, one in zip(carried[sequence], scores, strict=True):
            results[index] = one
    return results


def next_tokens(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[int]:
    """The most probable token after each prompt (of token ids).

    Raises:
        InvalidRequestError: A prompt does not fit the model.
    """
    require_fit(model, [len(ids) for ids in prompts])
    require_batch_size(batch_size)

    def found(own: Sequence[int]) -> list[int]:
        lengths = [len(prompts[index]) for index in own]
        tokens = [0] * len(own)
        steps = Steps(progress, len(prompts))
        with undisturbed(model):
            for batch in length_batches(lengths, batch_size):
                kept = lengths[batch[0]] - lengths[batch[-1]] + 1
                logits, offset = last_logits(model, [prompts[own[place]] for place in batch], kept)
                ends = torch.tensor([lengths[place] - 1 - offset for place in batch], device=logits.device)
                best = logits[torch.arange(len(batch), device=logits.device), ends].argmax(dim=-1).tolist()
                for place, token in zip(batch, best, strict=True):
                    tokens[place] = token
                steps.done(len(batch))
        return tokens

    order = by_length([len(ids) for ids in prompts])
    by_prompt = dict(zip(order, shared(model, "next tokens", order, found), strict=True))
    return [by_prompt[index] for index in range(len(prompts))]


def _carriers(inputs: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """The sequences to run, each with the indices of all inputs that are its beginning."""
    carried: dict[tuple[int, ...], list[int]] = {}
    carrier: tuple[int, ...] = ()
    for index in _descending(inputs):
        # in descending order a sequence follows right behind those that it is the beginning of
        if carrier[: len(inputs[index])] != inputs[index]:
            carrier = inputs[index]
        carried.setdefault(carrier, []).append(index)
    return carried


def _descending(inputs: Sequence[tuple[int, ...]]) -> Iterator[int]:
    return iter(sorted(range(len(inputs)), key=lambda index: inputs[index], reverse=True))


def _read(logits: Tensor, offset: int, pair: Continuation) -> Tensor:
    first = len(pair.prompt) - 1 - offset
    target = torch.tensor(pair.target, device=logits.device)
    scores = logits[first : first + len(target)].float().log_softmax(dim=-1)
    return scores.gather(1, target[:, None]).squeeze(1).cpu()
