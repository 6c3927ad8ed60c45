"""What goes wrong while transformers reads a model's files: one line that names the place, and no model half loaded."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..errors import PeftPruneError, UnsupportedModelError

_DAMAGED = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, RuntimeError),
    *(SafetensorError, StrictDataclassError, struct.error),
)
"""What transformers raises over a damaged file, depending on the place at which it stumbles over it."""
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


@contextmanager
def readable(what: str, path: str) -> Iterator[None]:
    """For a block that only has transformers read files: what it stumbles over becomes one line.

    Args:
        what: "model" or "tokenizer".
        path: Its place.

    Raises:
        UnsupportedModelError: The block raised what a damaged or foreign file leads to.
    """
    try:
        yield
    except (PeftPruneError, torch.OutOfMemoryError):
        raise
    except _DAMAGED as error:
        raise UnsupportedModelError(f"{what}: {path} cannot be loaded: {first_line(error)}") from None


def require_sizes(path: str, config: Any) -> None:
    """Raise UnsupportedModelError where a model's configuration gives it no layers, heads, width or words."""
    text = config.get_text_config()
    for name in _SIZES:
        value = getattr(text, name, None)
        if isinstance(value, int) and value < 1:
            raise UnsupportedModelError(f"model: {path} cannot be loaded: its {name} is {value}; at least 1 is needed")


def require_complete(path: str, info: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError where weights were missing or of another shape, and were made up instead.

    Args:
        path: The model's place.
        info: What ``from_pretrained`` says with ``output_loading_info``.
    """
    for key, stored, wanted in sorted(info["mismatched_keys"], key=str):
        raise UnsupportedModelError(
            f"model: {path} cannot be loaded: {key} has shape {tuple(stored)}, its config.json asks for {tuple(wanted)}"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise UnsupportedModelError(
            f"model: {path} cannot be loaded: its files lack {missing[0]}"
            + (f" and {len(missing) - 1} more weights" if len(missing) > 1 else "")
        )


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__
