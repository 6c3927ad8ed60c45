"""Adapters of other methods that a base carries beneath a PRUNE_EDIT adapter."""

from __future__ import annotations

import hashlib
from typing import Any

from peft import PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from ..models.sharding import whole
from .layer import PruneEditLayer


def adapters_beneath(model: nn.Module) -> list[str]:
    """One word for each method whose adapter acts in the model, such as ``"LORA:1f0c2a9b"``, with a hash of its values.

    PRUNE_EDIT itself is left out. An adapter that is switched off does not count, and one that is merged is part of the
    base's weights as well.
    """
    hashes: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, PruneEditLayer) or not isinstance(module, BaseTunerLayer) or module.disable_adapters:
            continue
        own = hashes.setdefault(_method(module), hashlib.sha256())
        for parameter_name, parameter in nn.Module.named_parameters(module):  # type: ignore[arg-type]
            active = any(f".{adapter}" in f".{parameter_name}." for adapter in module.active_adapters)
            if "base_layer." not in parameter_name and active and not parameter.is_meta:
                own.update(f"{name.removeprefix('base_model.model.')}.{parameter_name}".encode())
                own.update(whole(parameter.detach()).cpu().float().numpy().tobytes())
    return sorted(f"{method}:{own.hexdigest()[:8]}" for method, own in hashes.items())


def other_adapters(model: Any) -> list[str]:
    """Every adapter that a plain transformers model carries, by method, PRUNE_EDIT included."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return sorted({_method(layer) for layer in layers})


def methods_without_layers(model: PeftModel) -> list[str]:
    """The methods of a PEFT model that wraps no layers, such as prompt or prefix tuning; none of one that does."""
    if isinstance(model.base_model, BaseTuner):
        return []
    return sorted({PeftType(config.peft_type).value for config in model.peft_config.values()})


def _method(layer: BaseTunerLayer) -> str:
    # PEFT keeps each method in a folder of its name
    return "PRUNE_EDIT" if isinstance(layer, PruneEditLayer) else type(layer).__module__.split(".")[-2].upper()
