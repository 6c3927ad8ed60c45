"""Work on a model that is shared out over processes, each of which holds the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from ..errors import UnsupportedModelError
from ..processes import process_count, spread

T = TypeVar("T")
R = TypeVar("R")

_FSDP = "FullyShardedDataParallel"


def shared(model: nn.Module, what: str, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
    """`processes.spread`; where the processes hold parts of one model, all of them work on all items.

    Args:
        model: What ``work`` runs.
        what: What is done, for messages.
        items: The same in all processes.
        work: Gives one result for each item that it is given, of which there may be none.
    """
    if process_count() == 1 or split_by(model) is not None:
        return list(work(items))
    return spread(what, items, work)


def split_by(model: nn.Module) -> str | None:
    """What keeps parts of a model's weights in other processes; None where all of them are here."""
    for name, module in model.named_modules():
        if type(module).__name__ == _FSDP:
            return "FullyShardedDataParallel"
        for parameter in module.parameters(recurse=False):
            if hasattr(parameter, "ds_id"):
                return "DeepSpeed ZeRO-3"
            if hasattr(parameter, "full_tensor"):
                placed = ", ".join(str(one) for one in parameter.placements)
                return f"torch's DTensor (as fully_shard and tp_plan do; {name or 'the model'}: {placed})"
    return None


def require_whole(model: nn.Module) -> None:
    """Raise UnsupportedModelError where processes hold parts of the model's weights."""
    found = split_by(model)
    if found is not None:
        raise UnsupportedModelError(
            f"model: its weights are split over processes by {found}; load the whole model in every process, with "
            "device_map over several devices where one is too small, and processes share out the work"
        )
