"""The LoRA as a GGUF file, which llama.cpp and Ollama load over a GGUF of the base."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import MissingPackageError, UnsupportedModelError
from .architectures import GGUF, PERMUTED, entry_of, model_type, text_name
from .uniform import UniformLora

FILE = "adapter.gguf"


def require_gguf(lora: UniformLora) -> None:
    """Raise UnsupportedModelError or MissingPackageError where no GGUF can be written for this base."""
    list(_names(lora, _package()))


def write_gguf(lora: UniformLora, folder: Path) -> None:
    """Write ``adapter.gguf``: float32 factors under the base architecture's tensor names, alpha = rank."""
    gguf = _package()
    writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[_architecture(lora, gguf)])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp scales by alpha over each tensor's own rank
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(lora.rank))
    for module, tensor in _names(lora, gguf):
        update = lora.factors[module]
        writer.add_tensor(f"{tensor}.lora_a", update.A.numpy())
        writer.add_tensor(f"{tensor}.lora_b", update.B.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture(lora: UniformLora, gguf: Any) -> Any:
    config = lora.source.config
    kind = model_type(config, text=True)
    if lora.source.quantized or getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            f"base: {lora.source.base_name or 'it'} is quantized, so llama.cpp would compute with other weights than "
            "those that were edited; edit and export over the unquantized base"
        )
    return getattr(gguf.MODEL_ARCH, entry_of(GGUF, kind, "llama.cpp"))


def _names(lora: UniformLora, gguf: Any) -> Iterator[tuple[str, str]]:
    """Each module's name with that of its tensor in a GGUF of the base."""
    architecture = _architecture(lora, gguf)
    names = gguf.get_tensor_name_map(architecture, lora.source.config.get_text_config().num_hidden_layers)
    for module in sorted(lora.factors):
        tensor = names.get_name(f"{text_name(module)}.weight", try_suffixes=(".weight",))
        if tensor is None or not tensor.startswith("blk."):
            raise UnsupportedModelError(f"{module}: llama.cpp has no tensor of a layer for it")
        if architecture.name in PERMUTED and tensor.endswith(("attn_q.weight", "attn_k.weight")):
            raise UnsupportedModelError(f"{module}: llama.cpp stores its rows in another order; it cannot be exported")
        yield module, tensor


def _package() -> Any:
    try:
        return import_module("gguf")
    except ImportError:
        raise MissingPackageError("format: gguf needs the package gguf: pip install 'peft-prune[gguf]'") from None
