"""The text decoder of a model: where it stands, its configuration, its blocks and their width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UnsupportedModelError


def unwrapped(model: Any) -> PreTrainedModel:
    """The transformers model itself, without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(model: Any) -> tuple[str, PreTrainedModel]:
    """Name and module of the text decoder: where the model's own ``get_decoder`` leads, step by step.

    Raises:
        UnsupportedModelError: The model is no transformers model, or an encoder-decoder.
    """
    model = unwrapped(model)
    found = getattr(model, "_orig_mod", model)  # torch.compile wraps the model
    if not isinstance(found, PreTrainedModel):
        raise UnsupportedModelError(f"model: {type(model).__name__} has no transformers configuration")
    while (inner := _one_step_in(found)) is not found:
        found = inner
    if model.config.is_encoder_decoder or found.config.is_encoder_decoder:
        raise UnsupportedModelError(f"model: {type(model).__name__} is an encoder-decoder; decoders are accepted")
    return next(name for name, module in model.named_modules() if module is found), found


def text_config(model: Any) -> PreTrainedConfig:
    """The configuration of the text decoder.

    Raises:
        UnsupportedModelError: The model has no decoder, or its configuration names several.
    """
    return _text_config(decoder_of(model)[1])


def decoder_blocks(model: Any) -> list[tuple[str, nn.Module]]:
    """Name and module of every decoder block, first to last.

    Raises:
        UnsupportedModelError: The model has no decoder, or the decoder holds no list of blocks.
    """
    place, decoder = decoder_of(model)
    lists = {
        name: module
        for name, module in _own_modules(decoder)
        if isinstance(module, nn.ModuleList) and len(module) and all(len(list(block.children())) for block in module)
    }
    # the decoder's own list lies nearest; those further in belong to its parts
    nearest = min((name.count(".") for name in lists), default=0)
    lists = {name: module for name, module in lists.items() if name.count(".") == nearest}
    depth = getattr(_text_config(decoder), "num_hidden_layers", None)
    if len(lists) > 1:
        lists = {name: module for name, module in lists.items() if len(module) == depth}
    if len(lists) != 1:
        raise UnsupportedModelError(f"model: {type(decoder).__name__} keeps its layers in no one list of blocks")
    ((name, blocks),) = lists.items()
    return [(f"{place}.{name}.{index}".lstrip("."), block) for index, block in enumerate(blocks)]


def hidden_size(model: Any) -> int:
    """Width of the residual stream."""
    config = text_config(model)
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        raise UnsupportedModelError(f"model: the configuration {type(config).__name__} names no hidden_size")
    return width


def _one_step_in(model: PreTrainedModel) -> PreTrainedModel:
    """What ``get_decoder`` gives, or the base model where that is no model (a head may be called ``decoder``)."""
    for inner in (model.get_decoder(), model.base_model):
        if isinstance(inner, PreTrainedModel) and inner is not model:
            return inner
    return model


def _own_modules(decoder: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Modules of the decoder without those of other models within it, such as a vision tower."""
    others: list[str] = []
    for name, module in decoder.named_modules():
        if any(name.startswith(other + ".") for other in others):
            continue
        if module is not decoder and isinstance(module, PreTrainedModel) and module.config is not decoder.config:
            others.append(name)
            continue
        yield name, module


def _text_config(decoder: PreTrainedModel) -> PreTrainedConfig:
    try:
        return decoder.config.get_text_config(decoder=True)
    except ValueError as error:
        raise UnsupportedModelError(f"model: {type(decoder).__name__}: {str(error).splitlines()[0]}") from None
