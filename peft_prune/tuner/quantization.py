"""How a base layer's weight is read and written: a plain one as its parameter, a quantized one by its library."""

from __future__ import annotations

import copy
from typing import Any

from accelerate.utils import align_module_device
from peft.utils.quantization_utils import QuantizationBackend, resolve_quantization_backend
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..models.quantization import COMPRESSED, dequantized, form_of, is_plain, scheme_of

_INSTEAD = {
    "GgufLinear": "load it with GgufConfig(dequantize=True)",
    "FP8Linear": "load it with FineGrainedFP8Config(dequantize=True)",
    "CompressedTensorsFP8Linear": "load it with CompressedTensorsConfig(dequantize=True)",
    "QLinear": "freeze its weights first (optimum.quanto.freeze)",
}
_OTHERWISE = (
    "edit the model before it was quantized, and export the adapter as LoRA for the quantized one; bases of "
    "bitsandbytes, torchao, HQQ, optimum-quanto and compressed-tensors are edited as they are"
)


class LibraryBackend(QuantizationBackend):
    """Reads by `models.quantization`; a subclass may write.

    Args:
        name: The library's.
    """

    layer_type = "linear"
    supports_merge = False

    def __init__(self, name: str) -> None:
        self.backend_name = name

    def get_base_weight(self, base_layer: nn.Module) -> Tensor:
        """The dequantized weight, (out, in)."""
        weight = dequantized(base_layer)
        if weight is None:
            raise TypeError(f"{self.backend_name}: its weight cannot be read")
        return weight

    def set_base_weight(self, peft_layer: Any, weight_data: Tensor) -> None:
        raise TypeError(f"{self.backend_name}: a weight cannot be written back")


class PeftBackend(LibraryBackend):
    """Writes as PEFT does."""

    supports_merge = True

    def __init__(self, inner: QuantizationBackend) -> None:
        super().__init__(inner.backend_name)
        self._inner = inner

    def set_base_weight(self, peft_layer: Any, weight_data: Tensor) -> None:
        self._inner.set_base_weight(peft_layer, weight_data)

    def maybe_clone_base_result(self, x: Tensor) -> Tensor:
        return self._inner.maybe_clone_base_result(x)


class TorchaoBackend(LibraryBackend):
    """Quantizes anew by the configuration that the base was loaded with."""

    supports_merge = True

    def __init__(self, configuration: Any) -> None:
        super().__init__("torchao")
        self._configuration = configuration

    def set_base_weight(self, peft_layer: Any, weight_data: Tensor) -> None:
        from torchao.quantization import quantize_

        base = peft_layer.get_base_layer()
        form = form_of(base)
        base.weight = nn.Parameter(weight_data, requires_grad=False)
        quantize_(base, self._configuration(), filter_fn=lambda module, _: module is base)
        if form_of(base) != form:
            raise TypeError(f"torchao: its configuration quantizes the layer to {form_of(base)}, it was {form}")


class HqqBackend(LibraryBackend):
    """Quantizes anew with the settings of the layer, which stays the same object."""

    supports_merge = True

    def __init__(self) -> None:
        super().__init__("hqq")

    def set_base_weight(self, peft_layer: Any, weight_data: Tensor) -> None:
        from hqq.core.quantize import HQQLinear

        base = peft_layer.get_base_layer()
        settings = copy.deepcopy(base.quant_config)
        found = HQQLinear(
            None,
            {**settings, "offload_meta": base.offload_meta},
            compute_dtype=base.compute_dtype,
            device=base.device,
        )
        found.quantize(weight_data, **settings)
        base.W_q, base.meta = found.W_q, found.meta


class QuantoBackend(LibraryBackend):
    """Quantizes anew with the settings of the layer."""

    supports_merge = True

    def __init__(self) -> None:
        super().__init__("optimum-quanto")

    def set_base_weight(self, peft_layer: Any, weight_data: Tensor) -> None:
        base = peft_layer.get_base_layer()
        base.weight = nn.Parameter(weight_data, requires_grad=False)
        base.freeze()
        base.weight.requires_grad_(False)


def backend_of(base: nn.Module, name: str, **kwargs: Any) -> QuantizationBackend | None:
    """What reads and writes the weight of a linear base layer; None for a plain one.

    Args:
        base: The layer.
        name: Its name, for messages.
        kwargs: What PEFT's ``get_quantization_kwargs`` finds on the model.

    Raises:
        UnsupportedModelError: It is neither plain nor of a library that gives its weight back here.
    """
    if is_plain(base) or _is_absent(base):
        return None
    backend = _library(base, **kwargs)
    reason = "its class is neither a plain linear layer nor one that is known"
    if backend is not None:
        try:
            with align_module_device(base):
                weight = backend.get_base_weight(base)
            if weight.dim() == 2:
                return backend
            reason = f"its weight reads as {tuple(weight.shape)}"
        except (RuntimeError, TypeError, NotImplementedError, AttributeError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
    kind = type(base)
    raise UnsupportedModelError(
        f"{name or 'layer'}: {kind.__module__}.{kind.__name__} cannot be edited, since its weight cannot be read "
        f"({reason}); {_INSTEAD.get(kind.__name__, _OTHERWISE)}"
    )


def _is_absent(base: nn.Module) -> bool:
    """Whether an ordinary weight is on the meta device with nothing behind it, where nothing can be tried."""
    weight = getattr(base, "weight", None)
    return type(weight) is nn.Parameter and weight.is_meta and isinstance(base, nn.Linear) and form_of(base) is None


def _library(base: nn.Module, **kwargs: Any) -> QuantizationBackend | None:
    if scheme_of(base) is not None:
        return LibraryBackend(COMPRESSED)
    weight = getattr(base, "weight", None)
    package = type(weight).__module__.split(".")[0]
    if package == "torchao":
        configuration = kwargs.get("get_apply_tensor_subclass")
        return LibraryBackend("torchao") if configuration is None else TorchaoBackend(configuration)
    if package == "optimum":
        return QuantoBackend()
    if type(base).__module__.split(".")[0] == "hqq":
        return HqqBackend()
    # PEFT's resolver imports whatever library is installed, so it is asked about its own alone
    if any(kind.__module__.split(".")[0] == "bitsandbytes" for kind in type(base).__mro__):
        inner = resolve_quantization_backend(base, **kwargs)
        return inner if inner is None or form_of(base) is None else PeftBackend(inner)
    return None
