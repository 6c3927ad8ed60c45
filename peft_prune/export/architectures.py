"""What other programs call the modules of a transformers model, by its model type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..errors import UnsupportedModelError

GGUF = MappingProxyType(
    {
        "llama": "LLAMA",
        "mistral": "LLAMA",
        "qwen2": "QWEN2",
        "qwen3": "QWEN3",
        "gemma": "GEMMA",
        "gemma2": "GEMMA2",
        "gemma3": "GEMMA3",
        "gemma3_text": "GEMMA3",
        "gpt2": "GPT2",
        "phi3": "PHI3",
        "starcoder2": "STARCODER2",
    }
)
"""llama.cpp's architecture of each model type whose MLP weights it stores as transformers does."""

PERMUTED = frozenset({"LLAMA"})
"""Architectures in which llama.cpp reorders the rows of the query and key projections."""

_SAME: tuple[str, str] = ("", "")
MLX = MappingProxyType(
    {
        **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _SAME),
        **dict.fromkeys(("phi3", "starcoder2"), _SAME),
        "gemma3": ("model.language_model.", "language_model.model."),
        "gpt2": ("transformer.", "model."),
    }
)
"""How a module's name begins in transformers and in mlx-lm, by model type."""


def model_type(config: Any, *, text: bool = False) -> str:
    """The type of a model, or of its text part.

    Raises:
        UnsupportedModelError: There is no base, or its configuration names no type.
    """
    if config is None:
        raise UnsupportedModelError("base: this format needs the base, whose architecture names its tensors (--base)")
    return str((config.get_text_config() if text else config).model_type)


def entry_of(table: Mapping[str, Any], kind: str, program: str) -> Any:
    """What a table says of a model type.

    Raises:
        UnsupportedModelError: Nothing.
    """
    if kind not in table:
        raise UnsupportedModelError(
            f"base: model type {kind!r} cannot be exported for {program}; these can: {', '.join(table)}"
        )
    return table[kind]


def text_name(name: str) -> str:
    """A module's name in the text model alone, where it is part of a model with images or sound."""
    return re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", name)
