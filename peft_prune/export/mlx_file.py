"""The LoRA as mlx-lm reads it: transposed factors, a scale, the modules' full names."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from .architectures import MLX, entry_of, model_type
from .uniform import UniformLora


def require_mlx(lora: UniformLora) -> None:
    """Raise UnsupportedModelError where mlx-lm's names for this base's modules are not known."""
    _prefixes(lora)


def write_mlx(lora: UniformLora, folder: Path) -> None:
    """Write ``adapters.safetensors`` with lora_a (in, r), lora_b (r, out), and ``adapter_config.json``."""
    here, there = _prefixes(lora)
    names = {name: there + name.removeprefix(here) for name in sorted(lora.factors)}
    config = {
        "fine_tune_type": "lora",
        "num_layers": lora.source.config.get_text_config().num_hidden_layers,
        "lora_parameters": {"rank": lora.rank, "scale": 1.0, "dropout": 0.0, "keys": list(names.values())},
    }
    tensors = {}
    for name, own in names.items():
        tensors[f"{own}.lora_a"] = lora.factors[name].A.T.contiguous()
        tensors[f"{own}.lora_b"] = lora.factors[name].B.T.contiguous()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})


def _prefixes(lora: UniformLora) -> tuple[str, str]:
    here, there = entry_of(MLX, model_type(lora.source.config), "MLX")
    return here, there
