"""The weights of a base, one by one, whatever wraps them, wherever they lie and however they are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .decoder import unwrapped
from .experts import PLACE, is_experts
from .mlp import features
from .quantization import dequantized, form_of

Rows = Callable[[int, int], Tensor]
"""Rows from one to another of a weight, as a matrix in its own floating dtype."""

_ROWS = 1024
"""Rows of a weight that are widened at a time."""

_TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class BaseWeight:
    """One weight.

    Args:
        name: Its name in the unwrapped model.
        shape: Its shape; of a quantized one that of the weight it stands for.
        is_output: Whether it belongs to a linear map down to the hidden size, as the output of an MLP does.
        form: Name of the quantized format, "absent" on the meta device, or None for an ordinary weight.
        opened: Brings it in for as long as the block lasts; None where there is nothing to read.
    """

    name: str
    shape: tuple[int, ...]
    is_output: bool
    form: str | None
    opened: Callable[[], AbstractContextManager[Rows | None]]

    @property
    def rows(self) -> int:
        """Rows of the matrix that it is read as: all axes but the last are one."""
        count = 1
        for side in self.shape[:-1]:
            count *= side
        return count


def base_weights(model: nn.Module) -> Iterator[BaseWeight]:
    """Every parameter of the base in the model's order, tied ones once; what adapters add is left out."""
    # kept, for an offloaded parameter is replaced when it has been read, and its id would be given to another one
    seen: dict[int, nn.Parameter] = {}
    width = _width(model)
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    for name, module, outer in _base_modules("", model, None):
        matrix = _linear_shape(module)
        form = None if matrix is None else form_of(module)
        if matrix is not None and form is not None:
            yield BaseWeight(
                _joined(name, "weight"), matrix, _is_output(module, width), form, _Opened(module, "weight", form, outer)
            )
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or (form is not None and own != "bias"):
                continue
            if parameter.is_meta and _joined(name, own) in ties:
                continue  # accelerate gives each of two tied parameters a placeholder of its own
            seen[id(parameter)] = parameter
            absent = parameter.is_meta and not has_offloaded_params(module)
            is_matrix = own == "weight" and matrix is not None
            yield BaseWeight(
                _joined(name, own),
                tuple(parameter.shape),
                is_matrix and _is_output(module, width),
                "absent" if absent else None,
                _Opened(module, own, None, outer),
            )


def root_mean_square(model: nn.Module, module: str) -> float | None:
    """Root mean square of the entries of a module's base weight; None where the weight cannot be read.

    Args:
        model: The model, unwrapped or not.
        module: Name of a linear map in the unwrapped model.
    """
    own = next((weight for weight in base_weights(unwrapped(model)) if weight.name == f"{module}.weight"), None)
    if own is None:
        return None
    with own.opened() as rows:
        if rows is None:
            return None
        parts = (rows(start, start + _ROWS) for start in range(0, own.rows, _ROWS))
        squares = sum(float(torch.linalg.vector_norm(part.float())) ** 2 for part in parts)
    return (squares / (own.rows * own.shape[-1])) ** 0.5


def wrapped_modules(model: nn.Module) -> list[str]:
    """Names, in the unwrapped model, of the modules that a tuner has wrapped."""
    return [name for name, _, outer in _base_modules("", model, None) if outer is not None]


def _base_modules(
    name: str, module: nn.Module, outer: nn.Module | None
) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """Modules of the base with the outermost wrapper of each; a tuner layer keeps its base as ``base_layer``."""
    for inner in ("base_layer", "original_module"):
        wrapped = module._modules.get(inner)
        if isinstance(wrapped, nn.Module):
            yield from _base_modules(name, wrapped, outer or module)
            return
    yield name, module, outer
    for own, child in module.named_children():
        yield from _base_modules(name if own in _TRANSPARENT else _joined(name, own), child, None)


class _Opened:
    """Brings a parameter in, dequantized where its module is quantized."""

    def __init__(self, module: nn.Module, own: str, form: str | None, outer: nn.Module | None) -> None:
        self._module, self._own, self._form, self._outer = module, own, form, outer

    @contextmanager
    def __call__(self) -> Iterator[Rows | None]:
        if self._own == "weight" and getattr(self._outer, "merged", False) and hasattr(self._outer, "base_weight"):
            # a PRUNE_EDIT layer remembers the weight from before it was merged
            with self._outer.base_weight() as weight:  # type: ignore[union-attr, operator]
                yield _rows_of(weight.T if isinstance(self._module, Conv1D) else weight)
            return
        if self._own == "down_proj" and (merged := _merged_experts(self._module)):
            yield _rows_of(_unmerged_experts(self._module, merged))
            return
        with align_module_device(self._module), torch.no_grad():
            weight = getattr(self._module, self._own) if self._form is None else dequantized(self._module)
            if weight is not None and hasattr(weight, "full_tensor"):  # sharded over devices
                weight = weight.full_tensor()
            yield None if weight is None or weight.is_meta else _rows_of(weight.detach())


def _merged_experts(module: nn.Module) -> list[Any]:
    """The layers of fused experts into whose down projections an adapter is merged."""
    held = module._modules.get(PLACE) if is_experts(module) else None
    return [layer for layer in (() if held is None else held.children()) if getattr(layer, "merged", False)]


def _unmerged_experts(experts: Any, merged: Iterable[Any]) -> Tensor:
    """Their down projections as they were before any merge, in the shape in which they are stored."""
    weight: Tensor = experts.down_proj.detach().clone()
    for layer in merged:
        with layer.base_weight() as own:
            weight[layer.get_base_layer().index] = own.T if experts.is_transposed else own
    return weight


def _rows_of(weight: Tensor) -> Rows:
    matrix = weight.reshape(-1, weight.shape[-1]) if weight.ndim else weight.reshape(1, 1)
    return lambda start, stop: matrix[start:stop]


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Shape of a linear map's weight as it is stored; of a quantized one (out, in)."""
    sides = features(module)
    if sides is None:
        return None
    return sides if isinstance(module, Conv1D) else (sides[1], sides[0])


def _is_output(module: nn.Module, width: int | None) -> bool:
    sides = features(module)
    return sides is not None and sides[0] > sides[1] and width in (None, sides[1])


def _width(model: nn.Module) -> int | None:
    """The hidden size, where the configuration names one."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    return getattr(text, "hidden_size", None)


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def names_of(modules: Iterable[str]) -> set[str]:
    """Names of the weights of modules."""
    return {_joined(module, "weight") for module in modules}
