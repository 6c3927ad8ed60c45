"""Checkpoints as other tools leave them: a tiny base and copies of it with changed weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.tiny import random_update, tiny_gpt2, tiny_llama

LLAMA = "model.layers.1.mlp.down_proj.weight"  # (16, 32), wider than high
GPT2 = "transformer.h.1.mlp.c_proj.weight"  # (64, 16), stored as (in, out)


def save(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def base(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    return save({"llama": tiny_llama, "gpt2": tiny_gpt2}[kind](dtype=dtype), folder)


def low_rank(shape: tuple[int, int], rank: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return random_update(shape, rank, scale, seed).dense()


def edited(
    source: Path, folder: Path, changes: Mapping[str, Tensor], *, rounded_first: bool = False, **options: object
) -> Path:
    """A copy of the checkpoint in ``source`` with these differences added to its weights."""
    model = AutoModelForCausalLM.from_pretrained(source)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, change in changes.items():
            # summed in float32 and rounded once, or with a change that is rounded first, as half-precision tools do
            change = change.to(parameters[name].dtype).float() if rounded_first else change
            parameters[name].copy_(parameters[name].float() + change)
    return save(model, folder, **options)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
