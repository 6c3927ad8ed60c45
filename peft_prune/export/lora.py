"""The plain LoRA folder: what vLLM, SGLang, TGI, LoRAX, PEFT and transformers read."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from .uniform import UniformLora


def write_lora(lora: UniformLora, folder: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, without any pattern: servers ignore them."""
    # only fields that every release of PEFT and every server knows
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lora.source.base_name,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(lora.factors),
        "fan_in_fan_out": bool(lora.source.transposed),
        "bias": "none",
        "modules_to_save": None,
    }
    tensors = {}
    for name, update in lora.factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = update.A
        tensors[f"base_model.model.{name}.lora_B.weight"] = update.B
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
