"""Make a quantized base a plain one, and back."""

from __future__ import annotations

from typing import Any

from accelerate.utils import has_offloaded_params
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..errors import MergeError
from ..models.mlp import features
from ..models.quantization import dequantized, form_of
from .header import name_in_base
from .layer import PruneEditLayer

_MARKS = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit")
"""What transformers writes on a quantized model."""

_ABSENT = object()


def is_quantized(model: nn.Module) -> bool:
    """Whether a linear map of the model is quantized."""
    return any(True for _ in _quantized(model))


class Dequantized:
    """Every quantized linear map of a model replaced by a plain one of the model's dtype; `undo` puts them back.

    Both are held meanwhile. Needs the memory of the plain model beside the quantized one.

    Args:
        model: The model, with its adapters unmerged or none.

    Raises:
        MergeError: A map is offloaded, under another method's adapter, or cannot be read; or a weight that is not of a
            linear map is quantized. Nothing has changed.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._replaced = model, list[tuple[nn.Module, str, nn.Module]]()
        self._backends = [(layer, layer.quantization_backend) for layer in _own(model)]
        self._marks = {name: vars(model).get(name, _ABSENT) for name in _MARKS}
        config = getattr(model, "config", None)
        self._config = None if config is None else vars(config).get("quantization_config", _ABSENT)
        try:
            self._replace()
        except Exception:
            self.undo()
            raise

    def _replace(self) -> None:
        dtype = self._model.dtype
        for parent, name, module in list(_quantized(self._model)):
            path = name_in_base(next(path for path, one in self._model.named_modules() if one is module))
            if isinstance(parent, BaseTunerLayer) and not isinstance(parent, PruneEditLayer):
                raise MergeError(f"{path}: is quantized under another method's adapter; merge or unload that one first")
            if has_offloaded_params(module):
                raise MergeError(f"{path}: is quantized and offloaded; load the base without offloading to merge")
            try:
                weight = dequantized(module)
            except (RuntimeError, TypeError, NotImplementedError) as error:
                raise MergeError(f"{path}: its quantized weight cannot be read: {error}") from None
            if weight is None:
                raise MergeError(f"{path}: its quantized weight cannot be read; merge into the full-precision base")
            plain = _plain(module, weight.detach().to(dtype))
            setattr(parent, name, plain)
            self._replaced.append((parent, name, module))
        for layer, _ in self._backends:
            layer.quantization_backend = None
        for name in _MARKS:
            vars(self._model).pop(name, None)
        if self._config not in (None, _ABSENT):
            del self._model.config.quantization_config
        self._require_plain()

    def _require_plain(self) -> None:
        for name, parameter in self._model.named_parameters():
            if hasattr(parameter, "__tensor_flatten__") and type(parameter).__module__.split(".")[0] != "torch":
                raise MergeError(
                    f"{name_in_base(name)}: is quantized and not of a linear map; merge into the full-precision base"
                )

    def undo(self) -> None:
        """Put the quantized maps back."""
        for parent, name, module in self._replaced:
            setattr(parent, name, module)
        for layer, backend in self._backends:
            layer.quantization_backend = backend
        for name, value in self._marks.items():
            if value is not _ABSENT:
                setattr(self._model, name, value)
        if self._config not in (None, _ABSENT):
            self._model.config.quantization_config = self._config


def _quantized(model: nn.Module) -> Any:
    """Parent, name within it, and module of each quantized linear map."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if not hasattr(module, "base_layer") and features(module) is not None and form_of(module) is not None:
                yield parent, name, module


def _own(model: nn.Module) -> list[PruneEditLayer]:
    return [module for module in model.modules() if isinstance(module, PruneEditLayer)]


def _plain(module: Any, weight: Any) -> nn.Linear:
    found = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    found.weight = nn.Parameter(weight, requires_grad=False)
    bias = getattr(module, "bias", None)
    if bias is not None:
        found.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return found.train(module.training)
