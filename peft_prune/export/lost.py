"""Which edits a truncation loses: what the model says with the exported LoRA, by free greedy generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..requests import EditRequest
from ..session import verify
from ..spectral import LowRankUpdate
from ..tuner.header import name_in_base
from .source import source_of
from .uniform import uniform_lora


def lost_edits(
    model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], *, max_rank: int
) -> list[int]:
    """Places, in ``requests``, of the edits that hold now and no longer do once the update is truncated.

    Args:
        model: A PEFT model with a PRUNE_EDIT adapter, the active one; a pending restraint is applied.
        tokenizer: Its tokenizer.
        requests: What was edited.
        max_rank: The rank to truncate to.
    """
    lora = uniform_lora(source_of(model), max_rank=max_rank)
    full = verify(model, tokenizer, requests)
    with model.disable_adapter(), _acting(model, lora.factors):
        truncated = verify(model, tokenizer, requests)
    pairs = zip(full, truncated, strict=True)
    return [place for place, (before, after) in enumerate(pairs) if before.holds and not after.holds]


@contextmanager
def _acting(model: Any, factors: Mapping[str, LowRankUpdate]) -> Iterator[None]:
    """For a block in which the adapter is disabled: these factors in its place."""
    handles = []
    try:
        for name, layer in model.base_model.edited_layers():
            update = factors.get(name_in_base(name))
            if update is not None:
                handles.append(layer.base_layer.register_forward_hook(_adding(update)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(update: LowRankUpdate) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def added(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        up, down = (factor.to(x.device) for factor in (update.B, update.A))
        change = x.to(down.dtype) @ down.T @ up.T
        return (output + change.to(output.device)).to(output.dtype)

    return added
