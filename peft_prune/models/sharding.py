"""Weights that FSDP2 (``torch.distributed.fsdp.fully_shard``) shares out over processes: read whole, written by shards.

Whatever reads a whole weight asks every process for its part, so that all processes must ask for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is one process's part of a larger one (torch's DTensor)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """The whole of a sharded tensor, in memory of its own; any other as it is."""
    if not is_sharded(tensor):
        return tensor
    if not tensor.numel():  # torch cannot put together what has no rows or no columns
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    with torch.no_grad():
        found: Tensor = tensor.detach().full_tensor()
        # of a mesh of one process it is the shard itself, which a merge writes into
        return found.clone() if found.data_ptr() == tensor.to_local().data_ptr() else found


@torch.no_grad()
def write_shard(parameter: Any, value: Tensor) -> None:
    """Write a whole value into a sharded parameter, each process its own part, in place: FSDP2 keeps its memory."""
    from torch.distributed.tensor import distribute_tensor

    # all processes have the value, so that none has to send it
    part = distribute_tensor(
        value.to(parameter.device, parameter.dtype), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    parameter.to_local().copy_(part.to_local())


def shard_of(parameter: Any) -> Tensor:
    """A process's part of a sharded parameter, in the memory that FSDP2 keeps."""
    return parameter.detach().to_local()


def gathered(parameter: Any, shard: Tensor) -> Tensor:
    """The whole of what is sharded like this parameter; all processes must ask for it."""
    from torch.distributed.tensor import DTensor

    placed = DTensor.from_local(
        *(shard, parameter.device_mesh, parameter.placements),
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return whole(placed)


def fully_sharded(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of everything that ``fully_shard`` was called on."""
    library = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(library, "FSDPModule", None)
    if kind is not None:
        yield from ((name, module) for name, module in model.named_modules() if isinstance(module, kind))


def reshard(model: nn.Module) -> None:
    """Put shards in the place of gathered weights, as those of the outermost module are behind a forward pass."""
    for _, module in fully_sharded(model):
        module.reshard()


def settle(model: nn.Module) -> None:
    """Bring FSDP2 to rest after a forward pass that was ended in its midst."""
    outer: list[str] = []
    for name, module in fully_sharded(model):
        if not any(own == "" or name.startswith(f"{own}.") for own in outer):
            outer.append(name)
            module.reset_iter_state()
