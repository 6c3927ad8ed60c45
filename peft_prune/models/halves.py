"""Passes in bfloat16 where a device computes them faster, with weights that are rounded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.pytorch_utils import Conv1D

from .quantization import is_plain

MOST_BYTES = 4 << 30
"""Of copies: a larger model may just fit."""


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has units that multiply bfloat16 matrices."""
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    supports = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return bool(supports is not None and supports(including_emulation=False))


class Halves:
    """The weights of plain float32 maps in bfloat16, which stand in their places in a `with` block.

    Autocast alone would round them anew in every pass, which takes a quarter of it; the copies take half as much memory
    as the weights. What is no plain map in float32 on its device stays as it is. Where a device has no units for
    bfloat16, or the copies would take more than `MOST_BYTES`, nothing is done at all.

    Args:
        modules: Among which maps are looked for.
        device: On which they compute.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        maps = (one for module in modules for one in module.modules() if isinstance(one, (nn.Linear, Conv1D)))
        weights = [one.weight for one in maps if is_plain(one)]
        found = {id(weight): weight for weight in weights if _can_be_halved(weight)}
        fits = sum(weight.nbytes // 2 for weight in found.values()) <= MOST_BYTES
        self._acts = computes_in_bfloat16(device) and fits
        chosen = found.values() if self._acts else ()
        self._pairs = [(weight, weight.data, weight.data.to(torch.bfloat16)) for weight in chosen]
        self._device = device

    @contextmanager
    def acting(self, *, backward: bool = True) -> Iterator[None]:
        """Passes here are in bfloat16, and so must be the backward ones: autograd keeps weights by their place.

        Args:
            backward: Whether there are backward passes, for which another attention is faster on a CPU.
        """
        if not self._acts:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self._device.type, dtype=torch.bfloat16))
            if backward and self._device.type == "cpu":
                # the fused attention of this device is slower in bfloat16, backward
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.callback(self._put_back)
            for weight, _, half in self._pairs:
                weight.data = half
            yield

    def _put_back(self) -> None:
        for weight, own, _ in self._pairs:
            weight.data = own


def _can_be_halved(weight: Tensor) -> bool:
    return (
        type(weight) is nn.Parameter
        and type(weight.data) is Tensor
        and weight.dtype == torch.float32
        and weight.dim() == 2
        and weight.device.type != "meta"
    )
