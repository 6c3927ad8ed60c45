"""A saved adapter's folder, before others read it: factors in a basis of their own, the same update as a plain LoRA."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import AdapterError
from ..models.experts import place_of
from ..spectral import LowRankUpdate, in_own_basis
from .header import name_in_base
from .registration import PREFIX

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
LORA = "lora"
_A, _B = f".{PREFIX}A.weight", f".{PREFIX}B.weight"


def store_in_own_basis(folder: Path) -> None:
    """Rewrite the factors of a saved adapter so that they follow from ΔW alone, whatever edits it was summed from.

    Raises:
        AdapterError: The folder's files cannot be read, or a factor holds NaN or Inf.
    """
    entries = read_entries(folder)
    for name, update in factors_in(entries).items():
        key = name + _A
        try:
            own = in_own_basis(update)
        except ValueError as error:
            raise AdapterError(f"adapter: {folder / WEIGHTS}: {name_in_base(name)}: {error}") from None
        entries[key], entries[name + _B] = own.A.contiguous(), own.B.contiguous()
    save_file(entries, folder / WEIGHTS, {"format": "pt"})
    ranks = {name_in_base(name): update.rank for name, update in factors_in(entries).items()}
    config = read_config(folder)
    if config.get("ranks") is not None and config["ranks"] != ranks:
        write_config(folder, {**config, "ranks": ranks})


def store_lora(folder: Path, *, fan_in_fan_out: bool = False) -> None:
    """Write the update of a saved adapter as a LoRA into its subfolder ``lora``: one rank, scale 1, exact.

    Args:
        folder: The adapter's folder.
        fan_in_fan_out: Whether the base's layers keep their weight as (in, out), as GPT-2's do.

    Raises:
        AdapterError: The adapter holds no update, or values that a LoRA file does not.
    """
    entries, config = read_entries(folder), read_config(folder)
    updates = {name: update for name, update in factors_in(entries).items() if update.rank}
    extra = [key for key in entries if not key.endswith((_A, _B)) and PREFIX not in key]
    if extra:
        raise AdapterError(
            f"lora: the adapter holds {name_in_base(extra[0])} beside its factors, which a LoRA does not"
        )
    require_no_experts(map(name_in_base, updates))
    if not updates:
        raise AdapterError(f"lora: the adapter in {folder} holds no edits, so there is no update to write")
    rank = max(update.rank for update in updates.values())
    tensors: dict[str, Tensor] = {}
    for name, update in updates.items():
        pad = rank - update.rank
        tensors[name + ".lora_A.weight"] = torch.nn.functional.pad(update.A, (0, 0, 0, pad)).contiguous()
        tensors[name + ".lora_B.weight"] = torch.nn.functional.pad(update.B, (0, pad)).contiguous()
    lora = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[name_in_base(name) for name in updates],
        task_type=config.get("task_type"),
        base_model_name_or_path=config.get("base_model_name_or_path"),
        fan_in_fan_out=fan_in_fan_out,
        inference_mode=True,
    )
    (folder / LORA).mkdir(exist_ok=True)
    save_file(tensors, folder / LORA / WEIGHTS, {"format": "pt"})
    lora.save_pretrained(str(folder / LORA), auto_mapping_dict=config.get("auto_mapping"))


def require_no_experts(names: Iterable[str]) -> None:
    """Raise AdapterError where a module is one of several experts that are fused: no LoRA file holds one of them."""
    experts = next((name for name in names if place_of(name) is not None), None)
    if experts is not None:
        raise AdapterError(
            f"lora: {experts} is one of several fused experts, which a plain LoRA has no place for; merge the adapter "
            "into a checkpoint (peft-prune merge), or serve it with PEFT and this package"
        )


def factors_in(entries: Mapping[str, Tensor]) -> dict[str, LowRankUpdate]:
    """The update of each layer, by its name in the file."""
    names = [key.removesuffix(_A) for key in entries if key.endswith(_A)]
    missing = [name for name in names if name + _B not in entries]
    if missing:
        raise AdapterError(f"{name_in_base(missing[0])}{_B}: is missing in the adapter's file")
    try:
        return {name: LowRankUpdate(B=entries[name + _B], A=entries[name + _A]) for name in names}
    except ValueError as error:
        raise AdapterError(f"adapter: its factors do not fit together: {error}") from None


def updates_of(folder: Path) -> dict[str, LowRankUpdate]:
    """The update of each layer of a saved adapter, by its name in the base.

    Raises:
        AdapterError: The file is missing or damaged.
    """
    return {name_in_base(name): update for name, update in factors_in(read_entries(folder)).items()}


def read_entries(folder: Path) -> dict[str, Tensor]:
    """All tensors of a saved adapter.

    Raises:
        AdapterError: The file is missing or damaged.
    """
    if not (folder / WEIGHTS).is_file():
        raise AdapterError(f"adapter: {folder} holds no {WEIGHTS}")
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"adapter: {folder / WEIGHTS} cannot be read: {error}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a saved PRUNE_EDIT adapter.

    Raises:
        AdapterError: It is missing, damaged, or of another method.
    """
    if not (folder / CONFIG).is_file():
        raise AdapterError(f"adapter: {folder} holds no {CONFIG}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"adapter: {folder / CONFIG} cannot be read: {error}") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "PRUNE_EDIT":
        raise AdapterError(f"adapter: {folder} is of type {kind}, PRUNE_EDIT is accepted")
    return config


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration in PEFT's own form."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
