"""Published hyperparameters of the models of the literature, found by a model's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..models.decoder import text_config


@dataclass(frozen=True)
class Preset:
    """What was published for one editor and one model.

    Args:
        values: Hyperparameters that differ from the editor's defaults, or that matter too much to leave to them.
        source: Repository and file.
    """

    values: Mapping[str, Any]
    source: str


MODELS: dict[str, tuple[str, int, int, int]] = {
    "gpt2-xl": ("gpt2", 1600, 48, 50257),
    "gpt-j-6b": ("gptj", 4096, 28, 50400),
    "llama-2-7b": ("llama", 4096, 32, 32000),
    "llama-3-8b": ("llama", 4096, 32, 128256),
    "mistral-7b": ("mistral", 4096, 32, 32000),
    "qwen2.5-7b": ("qwen2", 3584, 28, 152064),
}
"""Model type, hidden size, layers and vocabulary of each model that has presets."""

_FOUR_TO_EIGHT = tuple(range(4, 9))
_THREE_TO_EIGHT = tuple(range(3, 9))
_ROME_7B = {"layers": (5,), "v_num_grad_steps": 25, "v_weight_decay": 1e-3, "mom2_adjustment": False}
_SPREAD_7B = {"layers": _FOUR_TO_EIGHT, "v_num_grad_steps": 25, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0}
_LLAMA_3 = {"layers": _FOUR_TO_EIGHT, "v_num_grad_steps": 25, "v_lr": 0.1}
_GPT_J = {"layers": _THREE_TO_EIGHT, "v_num_grad_steps": 25}
_XL = {"layers": tuple(range(13, 18))}
_NULL_SPACE = {"nullspace_threshold": 2e-2, "L2": 10.0}

PRESETS: dict[str, dict[str, Preset]] = {
    "rome": {
        "gpt2-xl": Preset({"layers": (17,)}, "kmeng01/rome hparams/ROME/gpt2-xl.json"),
        "gpt-j-6b": Preset({"layers": (5,)}, "kmeng01/rome hparams/ROME/EleutherAI_gpt-j-6B.json, layer"),
        "llama-2-7b": Preset(_ROME_7B, "zjunlp/EasyEdit hparams/ROME/llama-7b.yaml"),
        "llama-3-8b": Preset(_ROME_7B, "jianghoucheng/AlphaEdit hparams/ROME/Llama3-8B.json"),
        "mistral-7b": Preset(_ROME_7B, "zjunlp/EasyEdit hparams/ROME/mistral-7b.yaml"),
        "qwen2.5-7b": Preset(_ROME_7B, "zjunlp/EasyEdit hparams/ROME/qwen2.5-7b.yaml"),
    },
    "memit": {
        "gpt2-xl": Preset(_XL, "jianghoucheng/AlphaEdit hparams/MEMIT/gpt2-xl.json"),
        "gpt-j-6b": Preset(
            _GPT_J | {"mom2_update_weight": 15_000.0}, "kmeng01/memit hparams/MEMIT/EleutherAI_gpt-j-6B.json"
        ),
        "llama-2-7b": Preset(
            _SPREAD_7B | {"mom2_update_weight": 15_000.0}, "zjunlp/EasyEdit hparams/MEMIT/llama-7b.yaml"
        ),
        "llama-3-8b": Preset(
            _LLAMA_3 | {"mom2_update_weight": 15_000.0}, "jianghoucheng/AlphaEdit hparams/MEMIT/Llama3-8B.json"
        ),
        "mistral-7b": Preset(
            _SPREAD_7B | {"mom2_update_weight": 15_000.0}, "zjunlp/EasyEdit hparams/MEMIT/mistral-7b.yaml"
        ),
        "qwen2.5-7b": Preset(
            _SPREAD_7B | {"mom2_update_weight": 15_000.0}, "zjunlp/EasyEdit hparams/MEMIT/qwen2.5-7b.yaml"
        ),
    },
    "emmet": {
        "gpt2-xl": Preset(_XL, "zjunlp/EasyEdit hparams/EMMET/gpt2-xl.yaml"),
        "gpt-j-6b": Preset(_GPT_J, "zjunlp/EasyEdit hparams/EMMET/gpt-j-6B.yaml"),
        "llama-2-7b": Preset(_SPREAD_7B, "zjunlp/EasyEdit hparams/EMMET/llama-7b.yaml"),
    },
    "alphaedit": {
        "gpt2-xl": Preset(_XL | _NULL_SPACE, "jianghoucheng/AlphaEdit hparams/AlphaEdit/gpt2-xl.json"),
        "gpt-j-6b": Preset(_GPT_J | _NULL_SPACE, "jianghoucheng/AlphaEdit hparams/AlphaEdit/EleutherAI_gpt-j-6B.json"),
        "llama-3-8b": Preset(_LLAMA_3 | _NULL_SPACE, "jianghoucheng/AlphaEdit hparams/AlphaEdit/Llama3-8B.json"),
        "qwen2.5-7b": Preset(
            _SPREAD_7B | {"nullspace_threshold": 2e-2, "L2": 1.0}, "zjunlp/EasyEdit hparams/AlphaEdit/qwen2.5-7b.yaml"
        ),
    },
}


def known_model(model: Any) -> str | None:
    """The name in `MODELS` of a model of that shape, fine-tuned ones included; None for others."""
    config = text_config(model)
    shape = (config.model_type, *(getattr(config, n, None) for n in ("hidden_size", "num_hidden_layers", "vocab_size")))
    return next((name for name, known in MODELS.items() if known == shape), None)


def preset(editor: str, model: Any) -> Preset | None:
    """What was published for this editor and a model of this shape, or None."""
    name = known_model(model)
    return None if name is None else PRESETS.get(editor, {}).get(name)
