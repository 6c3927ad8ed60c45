"""What each server makes of an exported LoRA: ΔW by the module's name, read by the rules of its loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

PREFIX = "base_model.model."


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def pairs_of(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by module; every tensor must be one of them."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        assert key.startswith(PREFIX)
        module, end = key[len(PREFIX) :].rsplit(".lora_", 1)
        found.setdefault(module, {})[end] = tensor.double()
    return {module: (pair["A.weight"], pair["B.weight"]) for module, pair in found.items()}


def vllm(folder: Path, max_lora_rank: int, modules: set[str]) -> dict[str, Tensor]:
    """vllm/lora/peft_helper.py: r, lora_alpha and target_modules must be there, all else but a few is not looked at."""
    config = config_of(folder)
    rank, alpha, _ = (config[name] for name in ("r", "lora_alpha", "target_modules"))
    assert not config.get("modules_to_save") and not config.get("use_dora") and config.get("bias", "none") == "none"
    assert rank <= max_lora_rank and max_lora_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
    pairs = pairs_of(folder)
    assert {module.rsplit(".", 1)[-1] for module in pairs} <= modules
    assert all(down.shape[0] == rank for down, _ in pairs.values())
    return {module: up @ down * (alpha / rank) for module, (down, up) in pairs.items()}


def sglang(folder: Path, max_lora_rank: int) -> dict[str, Tensor]:
    """sglang/srt/lora: the last part of every name in a list; one rank, and no entry of a pattern."""
    config = config_of(folder)
    assert isinstance(config["target_modules"], list) and isinstance(config["r"], int)
    assert not config.get("rank_pattern") and not config.get("alpha_pattern")
    targets = {name.split(".")[-1] for name in config["target_modules"]}
    pairs = pairs_of(folder)
    assert all(module.split(".")[-1] in targets for module in pairs)
    assert {down.shape[0] for down, _ in pairs.values()} == {config["r"]} and config["r"] <= max_lora_rank
    return {module: up @ down * (config["lora_alpha"] / config["r"]) for module, (down, up) in pairs.items()}


def tgi(folder: Path, layers: list[str]) -> dict[str, Tensor]:
    """TGI and LoRAX, for the modules of one kind by layer: all or none, stacked, with PEFT's own reading of r."""
    config, pairs = LoraConfig.from_pretrained(folder), pairs_of(folder)
    if not all(layer in pairs for layer in layers):
        return {}
    down, up = (torch.stack([pairs[layer][place] for layer in layers]) for place in (0, 1))
    return dict(zip(layers, up * (config.lora_alpha / config.r) @ down, strict=True))


def ollama(folder: Path) -> dict[str, Tensor]:
    """ollama's convert: an integer alpha; a lora_a longer than wide and a lora_b wider than long are turned."""
    config = config_of(folder)
    assert type(config["lora_alpha"]) is int
    found = {}
    for module, (down, up) in pairs_of(folder).items():
        down, up = (down.T if down.shape[0] > down.shape[1] else down), (up.T if up.shape[0] < up.shape[1] else up)
        found[module] = up @ down * (config["lora_alpha"] / up.shape[1])
    return found


def llama_cpp(file: Path, architecture: str, shapes: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """src/llama-adapter.cpp, over a base with these tensors (out, in): ΔW by tensor."""
    import gguf

    reader = gguf.GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.type"] == "adapter" and values["adapter.type"] == "lora"
    assert values["general.architecture"] == architecture
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()).double() for tensor in reader.tensors}
    names = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in tensors}
    found = {}
    for name in names:
        down, up = tensors.pop(f"{name}.lora_a"), tensors.pop(f"{name}.lora_b")
        assert (up.shape[0], down.shape[1]) == shapes[name] and up.shape[1] == down.shape[0]
        alpha = values["adapter.lora.alpha"]
        found[name] = up @ down * (alpha / up.shape[1] if alpha else 1.0)
    assert not tensors
    return found


def mlx(folder: Path) -> dict[str, Tensor]:
    """mlx_lm/tuner/utils.py: layers named in full become LoRA layers, then weights of those names are loaded."""
    config = config_of(folder)
    assert config["fine_tune_type"] == "lora" and isinstance(config["num_layers"], int)
    own = config["lora_parameters"]
    tensors = load_file(folder / "adapters.safetensors")
    found = {}
    for key in own["keys"]:
        down, up = tensors.pop(f"{key}.lora_a").double(), tensors.pop(f"{key}.lora_b").double()
        assert down.shape[1] == up.shape[0] == own["rank"] and own["dropout"] == 0
        found[key] = (own["scale"] * down @ up).T
    assert not tensors, "a name that no layer takes is an error"
    return found
