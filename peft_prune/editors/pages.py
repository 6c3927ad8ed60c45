"""Memory that is mapped from files: it can be given back to the system between two uses, and comes back by itself."""

from __future__ import annotations

import ctypes
import mmap
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PAGE_OUT = 21
"""Linux' MADV_PAGEOUT, 5.4 and later, which Python does not name: nothing that was written is lost by it."""


def mapped(shape: torch.Size | tuple[int, ...], dtype: torch.dtype, folder: str | Path) -> Tensor:
    """Zeros in a file of this folder that has no name, so that nothing is left of it whatever happens."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".peft-prune-solve-") as file:
        # the mapping outlives the name
        count = torch.Size(shape).numel()
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)


def rest(tensor: Tensor) -> None:
    """Let the system take back the memory of a tensor that is mapped from a file; it is read again when it is used.

    Nothing happens to any other tensor, nor on other systems than Linux, which do this when memory is short.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or not tensor.numel():
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = tensor.data_ptr() + tensor.numel() * tensor.element_size() - start
    advice = _advice(start) if length > 0 else None
    if advice is not None:
        _library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)


def _advice(address: int) -> int | None:
    """How memory at an address of this process is given back; None where it is not mapped from a file."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        span, allowed, _, _, inode, *_ = line.split()
        first, last = (int(one, 16) for one in span.split("-"))
        if first <= address < last:
            # what is shared with its file is in there; of what is not, changes would be lost
            return None if inode == "0" else mmap.MADV_DONTNEED if allowed[3] == "s" else _PAGE_OUT
    return None


@cache
def _library() -> Any:
    return ctypes.CDLL(None)
