"""Another adapter for every row of a batch, as PEFT's ``adapter_names`` asks for."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .layer import PruneEditLayer

BASE = "__base__"
"""The name that stands for no adapter."""


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str], known: Collection[str], beams: int) -> Iterator[None]:
    """Give every layer of ``model``, for the span of the context, the adapter's name of each row.

    Args:
        model: The model that holds the layers.
        adapter_names: One name for each row; `BASE` for the base model.
        known: The adapters there are.
        beams: Beams that generation makes of each row.

    Raises:
        ValueError: A name is unknown, or the model is in training mode.
    """
    if isinstance(adapter_names, str) or not all(isinstance(name, str) for name in adapter_names):
        raise ValueError(f"adapter_names: {adapter_names!r} must be a list of adapters' names, one for each row")
    if model.training:
        raise ValueError("adapter_names: the model is in training mode; call eval() first")
    unknown = sorted(set(adapter_names) - set(known) - {BASE})
    if unknown:
        raise ValueError(f"adapter_names: {unknown[0]!r} is not one of {', '.join([*sorted(known), BASE])}")
    if beams > 1 and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError("adapter_names: not accepted together with beam search in an encoder-decoder")
    names = [name for name in adapter_names for _ in range(max(beams, 1))]
    thread = threading.get_ident()

    def with_names(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        # requests of other threads pass through the same modules
        return (args, {**kwargs, "adapter_names": names}) if threading.get_ident() == thread else None

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, (PruneEditLayer, AuxiliaryTrainingWrapper)):
                handle = module.register_forward_pre_hook(with_names, with_kwargs=True)
                stack.callback(handle.remove)
        yield
