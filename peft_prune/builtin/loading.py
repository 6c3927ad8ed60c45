"""The model and the tokenizer that the package ships."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..quiet import no_bar


def builtin_model_path() -> Path:
    """Folder of the built-in model, which transformers' Auto classes load."""
    return Path(str(files(__package__))) / "model"


def load_builtin_model(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The built-in model, in evaluation mode, and its tokenizer."""
    path = builtin_model_path()
    with no_bar():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.eval(), AutoTokenizer.from_pretrained(path)
