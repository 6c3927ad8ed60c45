"""A checkpoint on disk: its tensors by name, read strip by strip, whatever shards they lie in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
STRIP_ELEMENTS = 2**20
"""Elements of a tensor that are looked at together."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Args:
        file: Its shard.
        key: Its name there.
        shape: Its shape.
        kind: Its dtype in the file's own words.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    kind: str

    @property
    def is_weight(self) -> bool:
        """Whether it is of a floating dtype of 16, 32 or 64 bits, in which weights are compared."""
        return self.kind in _DTYPES

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows from ``start`` to ``stop``, in the tensor's own dtype.

        The file is opened for each call: the pages of a mapped file count as the process's memory until it is closed.
        """
        with safe_open(self.file, framework="pt") as file:
            if not self.shape:
                return file.get_tensor(self.key)[None].clone()
            return file.get_slice(self.key)[start:stop].clone()

    @contextmanager
    def opened(self) -> Iterator[Callable[[int, int], Tensor]]:
        """Its rows, of all axes but the last as one, for as long as the block lasts; the file is opened once."""
        high = math.prod(self.shape[1:-1])
        with safe_open(self.file, framework="pt") as file:
            part = file.get_slice(self.key) if len(self.shape) > 1 else file.get_tensor(self.key).reshape(1, -1)

            def rows(start: int, stop: int) -> Tensor:
                first = start // high
                held = part[first : -(-stop // high)]
                return held.reshape(-1, held.shape[-1])[start - first * high : stop - first * high]

            yield rows

    def whole(self) -> Tensor:
        """All of it, in its own dtype."""
        return self.rows(0, self.shape[0] if self.shape else 1)

    def strips(self) -> Iterator[tuple[int, int]]:
        """Beginnings and ends of strips of rows of about `STRIP_ELEMENTS`."""
        length = self.shape[0] if self.shape else 1
        width = 1
        for side in self.shape[1:]:
            width *= side
        step = max(STRIP_ELEMENTS // max(width, 1), 1)
        for start in range(0, length, step):
            yield start, min(start + step, length)

    def equals(self, other: StoredTensor) -> bool:
        """Whether both are the same numbers."""
        if self == other:
            return True
        if self.shape != other.shape or self.kind != other.kind:
            return False
        return all(torch.equal(self.rows(*span), other.rows(*span)) for span in self.strips())


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint by name.

    Args:
        path: Its folder or file.
        given: The name under which it was asked for: a path, or a name of the Hub.
        tensors: By the name under which they are stored.
        config: Its configuration as JSON, empty where it has none.
    """

    path: Path
    given: str
    tensors: dict[str, StoredTensor]
    config: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, given: str | None = None) -> Checkpoint:
        """Read the names, shapes and places of all tensors, and no tensor.

        Args:
            path: A folder with ``model.safetensors``, with an index and shards, or with any safetensors files; or one
                such file.
            given: The name to show, where that is not the path.

        Raises:
            CheckpointError: There is none, a shard is missing or damaged, the weights are pickled, quantized or those
                of an adapter, or an adapter lies beside them.
        """
        given = str(path) if given is None else given
        path = Path(path)
        if not path.exists():
            raise CheckpointError(f"checkpoint: {path} does not exist")
        config = _config(path)
        folder = path if path.is_dir() else path.parent
        if (folder / "adapter_config.json").exists() and (path.is_file() or any(folder.glob("model*.safetensors"))):
            raise CheckpointError(
                f"checkpoint: {folder} holds an adapter beside its weights (adapter_config.json), which is not "
                "in them; give the weights alone, or merge the adapter first"
            )
        if config.get("quantization_config"):
            raise CheckpointError(f"checkpoint: {path} is quantized; floating-point weights are accepted")
        tensors: dict[str, StoredTensor] = {}
        for file, wanted in _files(path).items():
            held = _stored(file)
            lacking = sorted((wanted or set()) - set(held))
            if lacking:
                raise CheckpointError(f"checkpoint: {file} lacks {lacking[0]}, which the index says it holds")
            for name in held if wanted is None else sorted(wanted):
                if name in tensors:
                    raise CheckpointError(f"checkpoint: {name} is in {tensors[name].file} and in {file}")
                tensors[name] = held[name]
        adapter = sorted(name for name in tensors if ".lora_A" in name or ".prune_edit_A" in name)
        if adapter:
            raise CheckpointError(
                f"checkpoint: {path} holds weights of an adapter ({adapter[0]}); merge it into its base first"
            )
        if not tensors:
            raise CheckpointError(f"checkpoint: {path} holds no tensors")
        return cls(path, given, tensors, config)

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.path if self.path.is_dir() else self.path.parent


def _config(path: Path) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    found = _json(file)
    if not isinstance(found, dict):
        raise CheckpointError(f"checkpoint: {file} must hold a JSON object, holds a {type(found).__name__}")
    return found


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint: {file} cannot be read: {error}") from None


def _files(path: Path) -> dict[Path, set[str] | None]:
    """Files to read, each with the names that count there; None for all."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(f"checkpoint: {path} is no safetensors file; pickled weights are not read")
        return {path: None}
    # transformers looks for the single file first as well
    if (path / SINGLE).is_file():
        return {path / SINGLE: None}
    if (path / INDEX).is_file():
        return _indexed(path)
    found = sorted(path.glob("*.safetensors"))
    if [file.name for file in found] == ["adapter_model.safetensors"]:
        raise CheckpointError(f"checkpoint: {path} holds an adapter; peft-prune report shows it, or merge it first")
    if not found:
        pickled = sorted(path.glob("*.bin")) + sorted(path.glob("*.pt*"))
        more = f"; {pickled[0].name} is pickled and is not read, convert it to safetensors" if pickled else ""
        raise CheckpointError(f"checkpoint: {path} holds no safetensors file{more}")
    return dict.fromkeys(found)


def _indexed(path: Path) -> dict[Path, set[str] | None]:
    found = _json(path / INDEX)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()) or not places:
        raise CheckpointError(f"checkpoint: {path / INDEX} is no index: it has no weight_map from names to files")
    shards: dict[str, set[str]] = {}
    for name, file in places.items():
        shards.setdefault(file, set()).add(name)
    missing = [file for file in shards if not (path / file).is_file()]
    if missing:
        amount = f"{len(missing)} of {len(shards)} shards"
        raise CheckpointError(f"checkpoint: {path} lacks {amount}, such as {missing[0]}")
    return {path / file: names for file, names in shards.items()}


def _stored(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            found = {}
            for key in opened.keys():
                part = opened.get_slice(key)
                found[key] = StoredTensor(file, key, tuple(part.get_shape()), part.get_dtype())
            return found
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint: {file} is damaged or no safetensors file: {error}") from None
