"""The LoRA as a GGUF file, which llama.cpp and Ollama load over a GGUF of the base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import MissingPackageError, UnsupportedModelError
from .architectures import GGUF, PERMUTED, entry_of, model_type, text_name
from .source import Source
from .uniform import UniformLora

FILE = "adapter.gguf"


def require_gguf(lora: UniformLora) -> None:
    """Raise UnsupportedModelError or MissingPackageError where no GGUF can be written for this base."""
    list(tensor_names(lora.source, gguf_package(), lora.factors))


def write_gguf(lora: UniformLora, folder: Path) -> None:
    """Write ``adapter.gguf``: float32 factors under the base architecture's tensor names, alpha = rank."""
    gguf = gguf_package()
    writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[architecture_of(lora.source, gguf)])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp scales by alpha over each tensor's own rank
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(lora.rank))
    for module, tensor in tensor_names(lora.source, gguf, lora.factors):
        update = lora.factors[module]
        writer.add_tensor(f"{tensor}.lora_a", update.A.numpy())
        writer.add_tensor(f"{tensor}.lora_b", update.B.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def architecture_of(source: Source, gguf: Any) -> Any:
    """llama.cpp's architecture of the base.

    Raises:
        UnsupportedModelError: It is not known, or the base is quantized.
    """
    config = source.config
    kind = model_type(config, text=True)
    if source.quantized or getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            f"base: {source.base_name or 'it'} is quantized, so llama.cpp would compute with other weights than "
            "those that were edited; edit and export over the unquantized base"
        )
    return getattr(gguf.MODEL_ARCH, entry_of(GGUF, kind, "llama.cpp"))


def tensor_names(source: Source, gguf: Any, modules: Iterable[str] | None = None) -> Iterator[tuple[str, str]]:
    """Each module's name with that of its tensor in a GGUF of the base.

    Args:
        source: The adapter.
        gguf: The package.
        modules: Names of modules in the base; those that the adapter changes if not given.

    Raises:
        UnsupportedModelError: A module has no such tensor, or one whose rows stand in another order.
    """
    architecture = architecture_of(source, gguf)
    names = gguf.get_tensor_name_map(architecture, source.config.get_text_config().num_hidden_layers)
    for module in sorted(source.updates if modules is None else modules):
        tensor = names.get_name(f"{text_name(module)}.weight", try_suffixes=(".weight",))
        if tensor is None or not tensor.startswith("blk."):
            raise UnsupportedModelError(f"{module}: llama.cpp has no tensor of a layer for it")
        if architecture.name in PERMUTED and tensor.endswith(("attn_q.weight", "attn_k.weight")):
            raise UnsupportedModelError(f"{module}: llama.cpp stores its rows in another order; it cannot be exported")
        yield module, tensor


def gguf_package() -> Any:
    """The package gguf.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        return import_module("gguf")
    except ImportError:
        raise MissingPackageError("format: gguf needs the package gguf: pip install 'peft-prune[gguf]'") from None
