"""Real language models as plain checkpoints: dequantized once, then kept in a cache folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..cache import cache_folder
from ..folders import whole_folder
from ..models.gguf import load_gguf_model, load_gguf_tokenizer, require_gguf
from ..outputs import require_writable
from ..quiet import no_bar
from .packages import RealModel, real_model


def load_real_model(
    name: str = "smollm2", dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A real language model, in evaluation mode, and its tokenizer.

    Args:
        name: One of `REAL_MODELS`: "smollm2" or "gemma3".
        dtype: Dtype of the weights; the checkpoint's own is bfloat16.

    Raises:
        UnsupportedModelError: The name is unknown.
        MissingPackageError: A package that it needs is not installed; the message says how it is.
    """
    path = real_model_path(name)
    with no_bar():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.eval(), AutoTokenizer.from_pretrained(path)


def real_model_path(name: str) -> Path:
    """Folder of a real model as a checkpoint in bfloat16, which transformers' Auto classes load.

    It is made at the first call, by one process while others wait, whole or not at all.

    Raises:
        UnsupportedModelError: The name is unknown.
        MissingPackageError: A package that it needs is not installed.
        ValueError: The cache folder cannot be written.
    """
    model = real_model(name)
    parts = model.parts()
    path = cache_folder() / model.release / model.name  # the last name is the one that adapters and histories show
    if not path.exists():
        require_gguf()
        require_writable(path, "cache")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{model.name}.lock")):
            if not path.exists():
                _make(model, parts, path)
    return path


def _make(model: RealModel, parts: list[Path], path: Path) -> None:
    with _joined(parts) as file, whole_folder(path) as folder:
        loaded, _ = load_gguf_model(file.parent, file.name, torch.bfloat16)
        loaded.save_pretrained(folder)
        load_gguf_tokenizer(file.parent, file.name).save_pretrained(folder)
        (folder / "README.md").write_text(
            f"{model.title}, dequantized from the GGUF file of {model.release}. Licence: {model.licence}.\n"
        )


@contextmanager
def _joined(parts: list[Path]) -> Iterator[Path]:
    """The file of which these are the parts."""
    if len(parts) == 1:
        yield parts[0]
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "model.gguf"
        with whole.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        yield whole
