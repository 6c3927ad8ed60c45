"""A merged checkpoint as a GGUF: that of the base, rewritten with the edits in its weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ..errors import CheckpointError
from ..folders import whole_folder
from ..outputs import require_outputs
from ..requests import EditRequest
from ..session import verify
from ..spectral import LowRankUpdate
from ..tuner import PruneEditLayer
from ..tuner.header import name_in_base
from .gguf_file import architecture_of, gguf_package, tensor_names
from .source import Source, source_of

FILE = "model.gguf"
QUANTIZATIONS = MappingProxyType({"keep": "Q8_0", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"})
"""By name: the type that the edited tensors get. With ``keep`` all others stay bit for bit as they are."""

_FILE_TYPES = MappingProxyType({"f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"})
_OUTER = ("token_embd.weight", "output.weight")
_BLOCK = 32
_FARTHEST = 0.5
"""‖W − W₀‖ / ‖W₀‖ above which a tensor is another model's; the coarsest formats leave about 0.3, other weights 1.4."""


@dataclass(frozen=True)
class MergedGguf:
    """What was written.

    Args:
        file: The GGUF.
        types: Number of tensors of each type in it.
        modules: Names, in the base, of the modules with edits in their weights.
        restraint_applied: Whether a restraint was pending and has been applied.
    """

    file: Path
    types: Mapping[str, int]
    modules: tuple[str, ...]
    restraint_applied: bool


def merge_into_gguf(
    model: Any,
    base_gguf: str | Path,
    out: str | Path,
    *,
    quantization: str = "keep",
    adapter_name: str | None = None,
    overwrite: bool = False,
) -> MergedGguf:
    """Write a GGUF of the base with the edits in its weights; settings and tokenizer are those of the base's GGUF.

    Edited tensors are W₀ + ΔW with W₀ from ``model``, summed in float32 and rounded once. All others come from
    ``base_gguf``: as they are, or converted. In "q4_0" embeddings and output get Q8_0. What llama.cpp does not quantize
    (norms, positions) stays as it is, and rows that are no multiple of 32 wide get F16.

    Args:
        model: A PEFT model with a PRUNE_EDIT adapter over the unquantized base. A pending restraint is applied.
        base_gguf: A GGUF of the same base, of any type.
        out: Folder for ``model.gguf``.
        quantization: "keep", which gives the edited tensors Q8_0 and leaves the others alone, "f16", "q8_0" or "q4_0".
        adapter_name: The adapter; the active one if not given.
        overwrite: Replace an existing folder.

    Raises:
        ValueError: The quantization is unknown, or the folder cannot be written.
        CheckpointError: ``base_gguf`` cannot be read, or is of another base.
        UnsupportedModelError: The base's architecture is not known, or its weights are quantized.
        MissingPackageError: The package gguf is not installed.
    """
    out, path = Path(out), Path(base_gguf)
    require_quantization(quantization)
    require_outputs(folders={"out": out}, inputs={"gguf": path}, overwrite=overwrite)
    gguf = gguf_package()
    source = source_of(model, adapter_name=adapter_name)
    modules = {tensor: module for module, tensor in tensor_names(source, gguf)}
    layers = _layers(model, adapter_name)
    reader = _opened(gguf, path, source)
    for name, edited in modules.items():
        _require_same(gguf, reader, path, name, layers[edited])
    types = {one.name: _type(gguf, one, one.name in modules, quantization) for one in reader.tensors}
    with whole_folder(out, overwrite=overwrite) as folder:
        writer = _begun(gguf, reader, folder / FILE, types, quantization)
        for one in reader.tensors:
            module = modules.get(one.name)
            if module is not None:
                writer.write_tensor_data(gguf.quantize(_sum(layers[module], source.updates[module]), types[one.name]))
            elif types[one.name] == one.tensor_type:
                writer.write_tensor_data(one.data)
            else:
                writer.write_tensor_data(gguf.quantize(gguf.dequantize(one.data, one.tensor_type), types[one.name]))
        writer.close()
    counts = Counter(kind.name for kind in types.values())
    return MergedGguf(out / FILE, dict(counts), tuple(sorted(modules.values())), source.restraint_applied)


def lost_in_gguf(
    model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], file: str | Path
) -> list[int]:
    """Places, in ``requests``, of the edits that hold with the adapter and not in a GGUF that it was merged into.

    The file is read by transformers, which computes with the numbers that stand in it; by free greedy generation.

    Args:
        model: A PEFT model with the adapter, the active one.
        tokenizer: Its tokenizer.
        requests: What was edited.
        file: The GGUF.
    """
    path = Path(file)
    before = verify(model, tokenizer, requests)
    merged = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()
    after = verify(merged, tokenizer, requests)
    pairs = zip(before, after, strict=True)
    return [place for place, (one, other) in enumerate(pairs) if one.holds and not other.holds]


def require_quantization(quantization: str) -> None:
    """Raise ValueError for a quantization that is unknown."""
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization: {quantization!r} is not one of {', '.join(QUANTIZATIONS)}")


def _opened(gguf: Any, path: Path, source: Source) -> Any:
    if not path.is_file():
        raise CheckpointError(f"gguf: {path} is no file")
    try:
        reader = gguf.GGUFReader(path)
        found = reader.fields["general.architecture"].contents()
        parts = reader.fields["split.count"].contents() if "split.count" in reader.fields else 1
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, MemoryError) as error:
        raise CheckpointError(f"gguf: {path} is no GGUF, or a damaged one: {error or type(error).__name__}") from None
    wanted = gguf.MODEL_ARCH_NAMES[architecture_of(source, gguf)]
    if found != wanted:
        raise CheckpointError(f"gguf: {path} is of architecture {found}, the base is of {wanted}")
    if reader.endianess != gguf.GGUFEndian.LITTLE:
        raise CheckpointError(f"gguf: {path} is big-endian; little-endian ones are accepted")
    if parts > 1:
        raise CheckpointError(f"gguf: {path} is one of {parts} parts; join them first (llama-gguf-split --merge)")
    return reader


def _layers(model: Any, adapter_name: str | None) -> dict[str, PruneEditLayer]:
    tuner = getattr(model, "base_model", model)
    return {name_in_base(name): layer for name, layer in tuner.edited_layers(adapter_name)}


def _require_same(gguf: Any, reader: Any, path: Path, tensor: str, layer: PruneEditLayer) -> None:
    """Raise CheckpointError where a tensor of the GGUF is not the base's own weight, up to its rounding."""
    found = next((one for one in reader.tensors if one.name == tensor), None)
    if found is None:
        raise CheckpointError(f"gguf: {path} holds no tensor {tensor}")
    stored = torch.tensor(gguf.dequantize(found.data, found.tensor_type))
    with layer.base_weight() as weight:
        own = weight.to("cpu", torch.float32)
    if stored.shape != own.shape or not float((stored - own).norm()) <= _FARTHEST * float(own.norm()):
        raise CheckpointError(f"gguf: {path}: its {tensor} is not the base's weight; it is a GGUF of another model")


def _sum(layer: PruneEditLayer, update: LowRankUpdate) -> Any:
    with layer.base_weight() as weight:
        return (weight.to("cpu", torch.float32) + update.to(torch.float32).dense()).numpy()


def _type(gguf: Any, tensor: Any, edited: bool, quantization: str) -> Any:
    """What a tensor is stored as."""
    kinds = gguf.GGMLQuantizationType
    of_layer = tensor.name.startswith("blk.") and tensor.name.endswith(".weight") and "ffn_gate_inp" not in tensor.name
    matrix = len(tensor.shape) == 2 and (of_layer or tensor.name in _OUTER)
    if not edited and (quantization == "keep" or not matrix):
        return tensor.tensor_type
    if tensor.shape[0] % _BLOCK:  # the first is the width of a row
        return kinds.F16
    coarse = quantization == "q4_0" and tensor.name in _OUTER
    return kinds.Q8_0 if coarse else getattr(kinds, QUANTIZATIONS[quantization])


def _begun(gguf: Any, reader: Any, file: Path, types: Mapping[str, Any], quantization: str) -> Any:
    """A file with the settings of another one, to which the tensors are written in their order."""
    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents())
    writer.data_alignment = reader.alignment
    changed = {"general.quantization_version": gguf.GGML_QUANT_VERSION}
    if quantization in _FILE_TYPES:
        changed["general.file_type"] = int(getattr(gguf.LlamaFileType, _FILE_TYPES[quantization]))
    for name, value in changed.items():
        writer.add_uint32(name, value)
    for name, held in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in changed:
            continue
        element = held.types[-1] if held.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, held.contents(), held.types[0], sub_type=element)
    for one in reader.tensors:
        kind, shape = types[one.name], [int(side) for side in reversed(one.shape)]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(one.name, shape, None, math.prod(shape) // block * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer
