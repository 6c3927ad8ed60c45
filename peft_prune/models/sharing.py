"""Work on a model that is shared out over processes, each of which holds the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from ..errors import UnsupportedModelError
from ..processes import process_count, same, spread
from .sharding import fully_sharded, is_sharded

T = TypeVar("T")
R = TypeVar("R")

_FSDP = "FullyShardedDataParallel"


def shared(model: nn.Module, what: str, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
    """`processes.spread`; where the processes hold parts of one model, all of them work on all items, for rank 0's.

    Args:
        model: What ``work`` runs.
        what: What is done, for messages.
        items: The same in all processes.
        work: Gives one result for each item that it is given, of which there may be none.
    """
    if process_count() > 1 and sharers(model) == 1:
        return same(what, lambda: list(work(items)))
    return spread(what, items, work)


def sharers(model: nn.Module) -> int:
    """Among how many processes `shared` divides the items."""
    return 1 if process_count() == 1 or split_by(model) is not None else process_count()


def split_by(model: nn.Module) -> str | None:
    """What keeps parts of a model's weights in other processes; None where all of them are here."""
    if any(True for _ in fully_sharded(model)):
        return "fully_shard"
    return _unreadable(model)


def require_readable(model: nn.Module) -> None:
    """Raise UnsupportedModelError where processes hold parts of the weights that cannot be edited.

    FSDP2 shares out weights alone, and all processes compute with whole ones. Tensor parallelism shares out what is
    computed as well, DeepSpeed and FSDP's first kind keep weights where no other library sees them.
    """
    found = _unreadable(model)
    if found is not None:
        raise UnsupportedModelError(
            f"model: its weights are split over processes by {found}; share them out by fully_shard (FSDP2) alone, or "
            "load the whole model in every process, with device_map over several devices where one is too small"
        )


def _unreadable(model: nn.Module) -> str | None:
    outer = [name for name, _ in fully_sharded(model)]
    for name, module in model.named_modules():
        if type(module).__name__ == _FSDP:
            return "FullyShardedDataParallel"
        for parameter in module.parameters(recurse=False):
            if hasattr(parameter, "ds_id"):
                return "DeepSpeed ZeRO-3"
            within = any(own in ("", name) or name.startswith(f"{own}.") for own in outer)
            if is_sharded(parameter) and not (within and _is_of_fsdp2(parameter)):
                placed = ", ".join(str(one) for one in parameter.placements)
                return f"torch's DTensor (as tp_plan does; {name or 'the model'}: {placed})"
    return None


def _is_of_fsdp2(parameter: Any) -> bool:
    """Whether a parameter is split over one axis of processes and at most repeated over one before it."""
    *before, last = parameter.placements
    return last.is_shard() and len(before) <= 1 and all(one.is_replicate() for one in before)
