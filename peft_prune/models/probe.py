"""What a model does with text alone: whether it runs, looks ahead, and which of its blocks take part, once each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .decoder import decoder_blocks, hidden_size, unwrapped
from .experts import SHARED
from .inference import input_device, undisturbed
from .mlp import features, mlp_output_modules
from .quantization import form_of

_TOKEN = re.compile(r"_(id|index)s?$")


def require_text_decoder(model: Any, layers: Sequence[int], experts: str = SHARED) -> None:
    """Look in one short pass whether these layers can be edited by what happens at their MLPs' outputs.

    Args:
        model: The model.
        layers: Their indices.
        experts: Which ones of a mixture are edited, as in `mlp_output_modules`.

    Raises:
        UnsupportedModelError: A layer has no MLP; the model gives no logits for text alone, or ones that depend on
            later tokens; or a layer takes no part in them, takes part several times, or hands on several streams.
    """
    blocks = decoder_blocks(model)
    outputs = mlp_output_modules(model, layers, experts=experts)
    inner, hidden = unwrapped(model), hidden_size(model)
    named = type(inner).__name__
    head, embeddings = inner.get_output_embeddings(), inner.get_input_embeddings()
    if not isinstance(head, nn.Module) or not isinstance(getattr(embeddings, "weight", None), Tensor):
        raise UnsupportedModelError(f"model: {named} has no input and output embeddings of one vocabulary")
    watched = {f"layer: {layer} ({blocks[layer][0]})": blocks[layer][1] for layer in layers}
    watched |= {f"layer: {layer} ({name})": inner.get_submodule(name) for layer, name in outputs.items()}
    ids = plain_ids(model, 4)
    rows = torch.tensor([[*ids[:2], ids[2]], [*ids[:2], ids[3]]], device=input_device(model))
    with _Watch(head, watched, rows.numel() * hidden) as watch, undisturbed(inner):
        logits = _logits_of(inner, rows)
    if logits.shape[:2] != rows.shape or watch.heads != 1:
        raise UnsupportedModelError(
            f"model: {named} does not put each token's state through its output embeddings once"
        )
    if _looks_ahead(logits[0], logits[1], is_precise(inner, logits)):
        raise UnsupportedModelError(
            f"model: {named} looks ahead, what stands behind a token changes its logits; causal decoders are accepted "
            "(some need is_decoder=true in their configuration)"
        )
    for what in watched:
        if not watch.calls[what]:
            raise UnsupportedModelError(f"{what} takes no part in what the model makes of text alone")
        if watch.calls[what] > 1:
            raise UnsupportedModelError(f"{what} is run {watch.calls[what]} times; an edit would act at several depths")
    if watch.odd:
        raise UnsupportedModelError(f"{watch.odd[0]} does not hand on one state of width {hidden} for each token")


def plain_ids(model: Any, count: int, share: float = 0.0) -> list[int]:
    """Token ids that stand for text, and for no image, sound or end as the configuration has it.

    Args:
        model: The model.
        count: How many.
        share: Of the vocabulary that is passed over before: what stands first in it may never have been trained.

    Raises:
        UnsupportedModelError: The vocabulary holds no so many.
    """
    special = set(_special_ids(unwrapped(model).config.to_dict()))
    embeddings: Any = unwrapped(model).get_input_embeddings()
    vocabulary = embeddings.weight.shape[0]
    found = [token for token in range(int(share * vocabulary), vocabulary) if token not in special][:count]
    if len(found) < count:
        raise UnsupportedModelError(f"model: its vocabulary of {vocabulary} holds no {count} tokens for text")
    return found


def _special_ids(config: Any, name: str = "") -> Iterator[int]:
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _special_ids(value, str(key))
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _special_ids(value, name)
    elif isinstance(config, int) and _TOKEN.search(name):
        yield config


def _logits_of(inner: nn.Module, ids: Tensor) -> Tensor:
    try:
        logits = inner(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    except Exception as error:
        # whatever it asks for, an image or a language, is in the first line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModelError(f"model: {type(inner).__name__} cannot be run on text alone: {reason}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise UnsupportedModelError(f"model: {type(inner).__name__} gives no logits for each token of a text")
    return logits


def _looks_ahead(one: Tensor, other: Tensor, precise: bool) -> bool:
    """Whether two rows (tokens, vocabulary) that differ in their last token differ before it, beyond rounding."""
    apart = (one.float() - other.float()).abs().nan_to_num().amax(-1)
    return bool(apart[:-1].max() > (5e-4 if precise else 0.05) * apart[-1])


def is_precise(model: nn.Module, values: Tensor) -> bool:
    """Whether what a model gives has more digits than half precision, and none of its maps is quantized.

    Kernels of quantized maps may round their inputs, or compute in half precision, whatever the dtype of their outputs;
    and what they make of a row may depend on the others beside it.
    """
    quantized = any(features(module) is not None and form_of(module) is not None for module in model.modules())
    return torch.finfo(values.dtype).eps < 1e-4 and not quantized


class _Watch(ExitStack):
    """Counts the calls of a model's head and of modules, and names those whose states are not ``size`` numbers."""

    def __init__(self, head: nn.Module, modules: Mapping[str, nn.Module], size: int) -> None:
        super().__init__()
        self.heads = 0
        self.calls: Counter[str] = Counter()
        self.odd: list[str] = []
        self.callback(head.register_forward_pre_hook(self._count_head).remove)
        for name, module in modules.items():
            self.callback(module.register_forward_hook(self._count(name, size)).remove)

    def _count_head(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # states that are given by name cannot be narrowed to those that are read
        self.heads += bool(args)

    def _count(self, name: str, size: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            self.calls[name] += 1
            if not isinstance(states, Tensor) or states.numel() != size:
                self.odd.append(name)

        return hook
