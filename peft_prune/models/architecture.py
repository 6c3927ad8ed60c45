"""Find the parts of a decoder that editors work on, from its structure and not from a list of names."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError

_ATTENTION = ("attn", "attention")


def unwrapped(model: Any) -> PreTrainedModel:
    """The transformers model itself, without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_blocks(model: Any) -> list[tuple[str, nn.Module]]:
    """Name and module of every decoder block, first to last.

    Raises:
        UnsupportedModelError: The model holds no list of as many equal blocks as its configuration has layers.
    """
    model = unwrapped(model)
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise UnsupportedModelError(f"model: {type(model).__name__} has no transformers configuration")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"model: {type(model).__name__} is an encoder-decoder; decoders are accepted")
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers and all(len(list(b.children())) for b in module):
            return [(f"{name}.{index}", block) for index, block in enumerate(module)]
    raise UnsupportedModelError(f"model: {type(model).__name__} has no list of {layers} decoder blocks")


def hidden_size(model: Any) -> int:
    """Width of the residual stream."""
    return unwrapped(model).config.get_text_config().hidden_size


def mlp_output_modules(model: Any) -> list[str]:
    """Name of every block's MLP output projection: its last linear map to the hidden size outside of attention.

    Names are those of the base model, also where a tuner has wrapped the projection.

    Raises:
        UnsupportedModelError: A block has no such map, or several experts of one.
    """
    model = unwrapped(model)
    blocks = decoder_blocks(model)
    hidden = hidden_size(model)
    return [_mlp_output(name, block, hidden) for name, block in blocks]


def mlp_output_module(model: Any, layer: int) -> tuple[str, nn.Module]:
    """Name and module of one block's MLP output projection.

    Raises:
        UnsupportedModelError: There is no such layer, or its projection cannot be found.
    """
    names = mlp_output_modules(model)
    if not 0 <= layer < len(names):
        raise UnsupportedModelError(f"layer: {layer} does not exist, the model has layers 0 to {len(names) - 1}")
    return names[layer], unwrapped(model).get_submodule(names[layer])


def features(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear map, also a quantized or wrapped one; None for other modules."""
    layer: Any = module  # quantized ones have no base class in common
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
        return layer.in_features, layer.out_features
    if type(layer).__name__ == "Conv1D":
        return layer.nx, layer.nf
    return None


def _mlp_output(block_name: str, block: nn.Module, hidden: int) -> str:
    found = [name for name, module in _linear_maps(block) if (features(module) or (0, 0))[1] == hidden]
    found = [name for name in found if not any(word in name.lower() for word in _ATTENTION)]
    if any("expert" in name for name, _ in block.named_modules()):
        raise UnsupportedModelError(f"model: {block_name} is a mixture of experts, which has no single MLP to edit")
    if not found:
        raise UnsupportedModelError(f"model: {block_name} has no linear map from its MLP back to the hidden size")
    return f"{block_name}.{found[-1]}"


def _linear_maps(block: nn.Module) -> list[tuple[str, nn.Module]]:
    maps: list[tuple[str, nn.Module]] = []
    for name, module in block.named_modules():
        inside = any(name.startswith(outer + ".") for outer, _ in maps)
        if name and not inside and features(module) is not None:
            maps.append((name, module))
    return maps
