"""Run a model over many sequences of token ids in padded batches, and leave no trace in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import InvalidRequestError
from ..processes import process_count
from .decoder import text_config, unwrapped

Progress = Callable[[int, int], None]

TOKENS_PER_BATCH = 4096
PADDING_ID = 0


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module's mode and every ``requires_grad`` is as before.

    PEFT sets ``requires_grad`` on an adapter that it disables and enables again, hence the second part.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    try:
        # not inference_mode: a tensor that a layer caches meanwhile must remain usable for training
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


def input_device(model: Any) -> torch.device:
    """Where token ids must stand: beside the input embeddings, or on the CPU where those are offloaded."""
    device = cast(nn.Embedding, unwrapped(model).get_input_embeddings()).weight.device
    return torch.device("cpu") if device.type == "meta" else device


def max_positions(model: Any) -> int | None:
    """The longest sequence that the model's configuration allows, or None where it names no limit."""
    return getattr(text_config(model), "max_position_embeddings", None)


def require_fit(model: Any, lengths: Sequence[int]) -> None:
    """Check that sequences of these many tokens fit the model.

    Raises:
        InvalidRequestError: One does not; the message names its index.
    """
    limit = max_positions(model)
    for index, length in enumerate(lengths):
        if limit is not None and length > limit:
            raise InvalidRequestError(f"prompt {index}: {length} tokens do not fit the model's {limit} positions")


def length_batches(lengths: Sequence[int], batch_size: int, max_tokens: int = TOKENS_PER_BATCH) -> list[list[int]]:
    """Indices in batches of similar length, longest first, so that a batch that is too large shows itself at once.

    Args:
        lengths: Number of tokens of each sequence.
        batch_size: Most sequences in one batch.
        max_tokens: Most tokens in one batch, padding included; a longer sequence stands alone.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """
    require_batch_size(batch_size)
    batches: list[list[int]] = []
    for index in by_length(lengths):
        current = batches[-1] if batches else []
        if current and len(current) < batch_size and (len(current) + 1) * lengths[current[0]] <= max_tokens:
            current.append(index)
        else:
            batches.append([index])
    return batches


def require_batch_size(batch_size: int) -> None:
    """Raise ValueError for a number below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} must be at least 1")


def by_length(lengths: Sequence[int]) -> list[int]:
    """Indices, those of the longest first."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


class Steps:
    """Tells how far a job is that processes share out evenly, from how far this one is.

    Args:
        progress: Called with the number done and the total; None for nobody.
        total: Number in all processes.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._own = progress, total, 0

    def done(self, number: int) -> None:
        """So many more are done here."""
        self._own += number
        if self._progress is not None:
            self._progress(min(self._own * process_count(), self._total), self._total)


def padded(sequences: Sequence[Sequence[int]], *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both ``(batch, longest)`` int64, padded on the left or on the right.

    The padding is masked and needs no token of its own, so a tokenizer without a pad token will do.
    """
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), PADDING_ID, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, place] = torch.tensor(sequence, dtype=torch.long)
        mask[row, place] = 1
    return ids.to(device), mask.to(device)


def by_rows(states: Tensor, rows: int) -> Tensor:
    """States as ``(rows, positions, width)``, also those of a block that lays all positions of a batch end to end."""
    return states.reshape(rows, -1, states.shape[-1])


def last_logits(model: Any, sequences: Sequence[Sequence[int]], count: int) -> tuple[Tensor, int]:
    """Logits of one right-padded batch at its last ``count`` positions.

    Returns:
        The logits ``(batch, positions, vocabulary)`` in the model's dtype, and the position of the first of them. A
        model that cannot leave positions out gives all of them.
    """
    ids, mask = padded(sequences, left=False, device=input_device(model))
    accepted = inspect.signature(unwrapped(model).forward).parameters
    options = {"use_cache": False, "logits_to_keep": count}
    kept = {name: value for name, value in options.items() if name in accepted}
    logits = model(input_ids=ids, attention_mask=mask, **kept).logits
    return logits, ids.shape[1] - logits.shape[1]
