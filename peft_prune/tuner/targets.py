"""Which modules an adapter takes in: the MLP outputs or what the configuration names, in the layers that it names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..models.decoder import decoder_blocks
from ..models.experts import SHARED, is_experts
from ..models.mlp import changed_modules, listed, mlp_output_modules, refused_layers
from .config import PruneEditConfig
from .header import name_in_base


def default_targets(model: nn.Module, layers: Sequence[int] | None, experts: str = SHARED) -> set[str]:
    """Names of the MLP output projections of these layers, of all that have one if not given.

    By their ending where that tells them apart, in full otherwise.

    Args:
        model: The base.
        layers: Their indices.
        experts: Which ones of a mixture, as in `mlp_output_modules`.
    """
    if layers is not None and not set(layers) <= set(range(len(decoder_blocks(model)))):
        layers = None  # which of them is not there is said where all targets are known
    try:
        asked = set(changed_modules(model, mlp_output_modules(model, layers, experts=experts).values()))
        names = set(changed_modules(model, mlp_output_modules(model, experts=experts).values()))
        refused = {} if layers is not None else refused_layers(model, experts=experts)
    except UnsupportedModelError as error:
        raise ValueError(f"Please specify `target_modules` in the config: {error}") from None
    if refused:
        warnings.warn(f"target_modules: some layers are left out, they cannot be edited; {listed(refused)}")
    endings = {re.sub(r"^.*?\.\d+\.", "", name) for name in names}
    present = [name for name, _ in model.named_modules()]
    present += changed_modules(model, [name for name in present if is_experts(model.get_submodule(name))])
    matched = {name for name in present if any(name.endswith("." + ending) for ending in endings)}
    return endings if matched == names else asked


def is_target(config: PruneEditConfig, name: str) -> Any:
    """Whether an adapter takes in the module of that name; what PEFT gives for excluded ones is handed on.

    PEFT holds ``layers_to_transform`` against names that it finds by their ending alone; here it holds for all.
    """
    found = _is_named(config, name)
    if found:
        found = config.is_chosen_layer(name)
    # a saved adapter may have been made by a version that took in more layers
    return found or (name_in_base(name) in (config.ranks or {})) or found


def require_layers(config: PruneEditConfig, model: nn.Module) -> None:
    """Raise ValueError where ``layers_to_transform`` names a layer without a target module."""
    chosen = config.chosen_layers
    if chosen is None:
        return
    named = [name for name in _names_outside_of_adapters(model) if _is_named(config, name)]
    present = {layer for layer in map(config.layer_of, named) if layer is not None}
    missing = sorted(chosen - present)
    if not named or not missing:
        return  # PEFT has an error of its own where no target is found at all
    if not present:
        raise ValueError(f"layers_to_transform: no layer's index is found in names such as {named[0]}")
    raise ValueError(
        f"layers_to_transform: {missing[0]} is no layer with a target module; {_listed(sorted(present))} are accepted"
    )


def tied_to(model: nn.Module, layer: BaseTunerLayer) -> str | None:
    """Name of another module that uses the base weight of this layer, as an output head uses the embeddings' weight."""
    base: Any = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if weight is None:
        return None  # a library keeps it in a form of its own, which nothing else can use
    for name, module in model.named_modules():
        if module in (base, layer, getattr(base, "experts", None)):
            continue
        if any(_share(weight, other) for other in module.parameters(recurse=False)):
            return name_in_base(name)
    if weight.is_meta:
        return _declared_tie(model, base)
    return None


def _is_named(config: PruneEditConfig, name: str) -> Any:
    anywhere = SimpleNamespace(
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        modules_to_save=config.modules_to_save,
        target_parameters=None,
    )
    return check_target_module_exists(anywhere, name)


def _names_outside_of_adapters(model: nn.Module) -> Iterator[str]:
    inside: list[str] = []
    for name, module in model.named_modules():
        if not name or any(name.startswith(outer) for outer in inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside.append(name + ".")
        yield name


def _listed(numbers: list[int]) -> str:
    consecutive = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if consecutive else ", ".join(map(str, numbers))


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same one or lie, at least in part, in the same memory."""
    if one is other:
        return True
    if any(hasattr(tensor, "__tensor_flatten__") for tensor in (one, other)):
        return False  # composed of others; a library makes one for each layer
    if one.is_meta or other.is_meta or one.device != other.device or one.numel() == 0 or other.numel() == 0:
        return False
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    ends = [tensor.data_ptr() + tensor.numel() * tensor.element_size() for tensor in (one, other)]
    return one.data_ptr() < ends[1] and other.data_ptr() < ends[0]


def _declared_tie(model: nn.Module, base: nn.Module) -> str | None:
    """What transformers says an offloaded weight is tied to."""
    own = next(
        name_in_base(name).removesuffix(".base_layer") for name, module in model.named_modules() if module is base
    )
    for name, module in model.named_modules():
        ties = getattr(module, "all_tied_weights_keys", None) or {}
        prefix = name_in_base(name + ".") if name else ""
        for pair in ties.items():
            modules = [prefix + key.rpartition(".")[0] for key in pair]
            if own in modules:
                return modules[1 - modules.index(own)]
    return None
