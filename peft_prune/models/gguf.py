"""Models in llama.cpp's file format: their numbers dequantized into a plain model of transformers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import MissingPackageError, UnsupportedModelError

MAGIC = b"GGUF"
"""How such a file begins."""


def load_gguf_model(
    place: str | Path, gguf_file: str, dtype: torch.dtype | str = torch.float32
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in a GGUF file, its blocks dequantized, and what transformers says of its loading.

    Args:
        place: Folder of the file, or a Hub name.
        gguf_file: Name of the file there.
        dtype: Dtype of the weights; "auto" keeps the file's own where it has one.

    Raises:
        MissingPackageError: The package gguf is not installed.
    """
    require_gguf()
    options: dict[str, Any] = {"dtype": dtype, "gguf_file": gguf_file, "output_loading_info": True}
    packed = getattr(transformers, "GgufConfig", None)  # before transformers 5.23 every file is dequantized
    if packed is not None:
        options["quantization_config"] = packed(dequantize=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(str(place), trust_remote_code=False, **options)
    model, info = loaded
    return _plain(model).eval(), info


def load_gguf_tokenizer(place: str | Path, gguf_file: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file, with its chat template where it has one.

    Raises:
        MissingPackageError: The package gguf is not installed.
    """
    require_gguf()
    return AutoTokenizer.from_pretrained(str(place), gguf_file=gguf_file, trust_remote_code=False)


def require_gguf() -> None:
    """Raise MissingPackageError where the package that reads these files is not installed."""
    if find_spec("gguf") is None:
        raise MissingPackageError("gguf: the package is not installed; pip install 'peft-prune[gguf]'")


def require_gguf_file(path: Path) -> None:
    """Raise UnsupportedModelError where a file is missing, or is no GGUF file by its first bytes."""
    if not path.is_file():
        others = sorted(one.name for one in path.parent.glob("*.gguf"))
        held = f"it holds {', '.join(others[:5])}" if others else "it holds no .gguf file"
        raise UnsupportedModelError(f"gguf_file: {path.parent} has no file {path.name}; {held}")
    with path.open("rb") as file:
        begins = file.read(len(MAGIC))
    if begins != MAGIC:
        raise UnsupportedModelError(f"gguf_file: {path} is no GGUF file, it begins with {begins!r}")


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model without the mark of the quantizer that has dequantized it, which would refuse to be saved."""
    for owner, name in ((model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    if hasattr(model, "is_quantized"):
        setattr(model, "is_quantized", False)  # noqa: B010
    return model
