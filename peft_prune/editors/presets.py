"""Published hyperparameters of the models of the literature, found by a model's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..models.decoder import text_config

COMMITS: dict[str, str] = {
    "kmeng01/rome": "0874014cd9837e4365f3e6f3c71400ef11509e04",
    "kmeng01/memit": "80426fd9316cf9a50c5ba15e0912f2c2c5bfe84b",
    "jianghoucheng/AlphaEdit": "f5248d3d25f1b3863bff19c387293d635866079f",
    "scalable-model-editing/unified-model-editing": "23d72b560e52992e675377cc2d1deed7a45b1cd0",
    "zjunlp/EasyEdit": "14cea8245f06715684592ab55184939b99d70784",
    "XiaojieGu/UltraEdit": "0beb222559b01c6dc025aede801c1fc496ec2920",
    "ICT-STAR/LocFT": "51db7854feb3596085051e45bf8b3147bfb0ccb1",
}
"""The commit of each repository at which its files hold the values here."""


@dataclass(frozen=True)
class Preset:
    """What was published for one editor and one model.

    Args:
        values: Hyperparameters that differ from the editor's defaults.
        repository: On GitHub, one of `COMMITS`.
        file: In that repository.
    """

    values: Mapping[str, Any]
    repository: str
    file: str

    @property
    def source(self) -> str:
        """Repository, commit and file."""
        return f"{self.repository}@{COMMITS[self.repository]} {self.file}"


MODELS: dict[str, tuple[str, int, int, int]] = {
    "gpt2-xl": ("gpt2", 1600, 48, 50257),
    "gpt-j-6b": ("gptj", 4096, 28, 50400),
    "llama-2-7b": ("llama", 4096, 32, 32000),
    "llama-3-8b": ("llama", 4096, 32, 128256),
    "mistral-7b": ("mistral", 4096, 32, 32000),
    "qwen2.5-7b": ("qwen2", 3584, 28, 152064),
}
"""Model type, hidden size, layers and vocabulary of each model that has presets."""

_ROME, _MEMIT, _ALPHAEDIT, _EMMET, _EASYEDIT, _ULTRAEDIT, _LOCFT = COMMITS

_FOUR_TO_EIGHT = tuple(range(4, 9))
_SLOW_DECAY = {"v_num_grad_steps": 25, "v_weight_decay": 1e-3}
_ROME_7B = {"layers": (5,), **_SLOW_DECAY, "mom2_adjustment": False}
_SPREAD_7B = {"layers": _FOUR_TO_EIGHT, **_SLOW_DECAY, "clamp_norm_factor": 4.0}
_MEMIT_7B = {**_SPREAD_7B, "mom2_update_weight": 15_000.0}
_LLAMA_3 = {"layers": _FOUR_TO_EIGHT, "v_num_grad_steps": 25, "v_lr": 0.1}
_GPT_J = {"layers": tuple(range(3, 9)), "v_num_grad_steps": 25}
_XL = {"layers": tuple(range(13, 18))}
_NULL_SPACE = {"nullspace_threshold": 2e-2, "L2": 10.0}

PRESETS: dict[str, dict[str, Preset]] = {
    "rome": {
        "gpt2-xl": Preset({"layers": (17,)}, _ROME, "hparams/ROME/gpt2-xl.json"),
        "gpt-j-6b": Preset({"layers": (5,)}, _ROME, "hparams/ROME/EleutherAI_gpt-j-6B.json"),
        "llama-2-7b": Preset(_ROME_7B, _EASYEDIT, "hparams/ROME/llama-7b.yaml"),
        "llama-3-8b": Preset(_ROME_7B, _ALPHAEDIT, "hparams/ROME/Llama3-8B.json"),
        "mistral-7b": Preset(_ROME_7B, _EASYEDIT, "hparams/ROME/mistral-7b.yaml"),
        "qwen2.5-7b": Preset(_ROME_7B, _EASYEDIT, "hparams/ROME/qwen2.5-7b.yaml"),
    },
    "memit": {
        "gpt2-xl": Preset(_XL, _MEMIT, "hparams/MEMIT/gpt2-xl.json"),
        "gpt-j-6b": Preset(
            {**_GPT_J, "mom2_update_weight": 15_000.0}, _MEMIT, "hparams/MEMIT/EleutherAI_gpt-j-6B.json"
        ),
        "llama-2-7b": Preset(_MEMIT_7B, _EASYEDIT, "hparams/MEMIT/llama-7b.yaml"),
        "llama-3-8b": Preset({**_LLAMA_3, "mom2_update_weight": 15_000.0}, _ALPHAEDIT, "hparams/MEMIT/Llama3-8B.json"),
        "mistral-7b": Preset(_MEMIT_7B, _EASYEDIT, "hparams/MEMIT/mistral-7b.yaml"),
        "qwen2.5-7b": Preset(_MEMIT_7B, _EASYEDIT, "hparams/MEMIT/qwen2.5-7b.yaml"),
    },
    "emmet": {
        "gpt2-xl": Preset({"layers": (17,)}, _EMMET, "hparams/EMMET/gpt2-xl.json"),
        "gpt-j-6b": Preset(
            {"layers": (5,), "v_num_grad_steps": 25, "mom2_update_weight": 1.0},
            _EMMET,
            "hparams/EMMET/EleutherAI_gpt-j-6B.json",
        ),
        "llama-2-7b": Preset(
            {"layers": (5,), **_SLOW_DECAY, "clamp_norm_factor": 4.0, "mom2_update_weight": 1.0},
            _EMMET,
            "hparams/EMMET/llama2-7b.json",
        ),
    },
    "ultraedit": {
        "gpt-j-6b": Preset({"layers": tuple(range(18, 27))}, _ULTRAEDIT, "config/model/gpt-j.yaml"),
        "mistral-7b": Preset({"layers": (29, 30)}, _ULTRAEDIT, "config/model/mistral-7b.yaml"),
    },
    "locft_bf": {
        "llama-3-8b": Preset({"layers": (22,)}, _LOCFT, "hparams/llama3-8b.yaml"),
        "qwen2.5-7b": Preset({"layers": (6,)}, _LOCFT, "hparams/qwen2.5-7b.yaml"),
    },
    "alphaedit": {
        "gpt2-xl": Preset({**_XL, **_NULL_SPACE}, _ALPHAEDIT, "hparams/AlphaEdit/gpt2-xl.json"),
        "gpt-j-6b": Preset({**_GPT_J, **_NULL_SPACE}, _ALPHAEDIT, "hparams/AlphaEdit/EleutherAI_gpt-j-6B.json"),
        "llama-3-8b": Preset({**_LLAMA_3, **_NULL_SPACE}, _ALPHAEDIT, "hparams/AlphaEdit/Llama3-8B.json"),
        "qwen2.5-7b": Preset(
            {**_SPREAD_7B, "nullspace_threshold": 2e-2, "L2": 1.0}, _EASYEDIT, "hparams/AlphaEdit/qwen2.5-7b.yaml"
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
