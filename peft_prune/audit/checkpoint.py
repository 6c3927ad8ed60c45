"""A checkpoint on disk: its tensors by name, read strip by strip, whatever shards they lie in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

INDEX = "model.safetensors.index.json"
STRIP_BYTES = 16 * 2**20
"""What is read of a tensor at once."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Args:
        file: Its shard.
        key: Its name there.
        shape: Its shape.
        dtype: Its dtype; None for one that is not a floating dtype of 16 bits or more.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; of all of it for a vector."""
        size = 8 if self.dtype is None else self.dtype.itemsize
        count = 1
        for length in self.shape[1:]:
            count *= length
        return max(count * size, 1)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows from ``start`` to ``stop``, in the tensor's own dtype.

        The file is opened for each call: the pages of a mapped file count as the process's memory until it is closed.
        """
        with safe_open(self.file, framework="pt") as file:
            if not self.shape:
                return file.get_tensor(self.key)[None].clone()
            return file.get_slice(self.key)[start:stop].clone()

    def whole(self) -> Tensor:
        """All of it, in its own dtype."""
        return self.rows(0, self.shape[0] if self.shape else 1)

    def strips(self) -> Iterator[tuple[int, int]]:
        """Beginnings and ends of strips of rows of about `STRIP_BYTES`."""
        length = self.shape[0] if self.shape else 1
        step = max(STRIP_BYTES // self.row_bytes, 1)
        for start in range(0, length, step):
            yield start, min(start + step, length)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint by name.

    Args:
        path: Its folder or file.
        tensors: By the name under which they are stored.
        config: Its configuration as JSON, empty where it has none.
    """

    path: Path
    tensors: dict[str, StoredTensor]
    config: dict[str, object]

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read the names, shapes and places of all tensors, and no tensor.

        Args:
            path: A folder with ``model.safetensors``, with an index and shards, or with any safetensors files; or one
                such file.

        Raises:
            CheckpointError: There is none, a shard is missing or damaged, or the weights are pickled, quantized or
                those of an adapter.
        """
        path = Path(path)
        if not path.exists():
            raise CheckpointError(f"checkpoint: {path} does not exist")
        config = _config(path)
        if config.get("quantization_config"):
            raise CheckpointError(f"checkpoint: {path} is quantized; floating-point weights are accepted")
        files = _files(path)
        tensors: dict[str, StoredTensor] = {}
        for file, wanted in files.items():
            for name, stored in _stored(file).items():
                if wanted is None or name in wanted:
                    tensors[name] = stored
            lacking = sorted((wanted or set()) - set(tensors))
            if lacking:
                raise CheckpointError(f"checkpoint: {file} lacks {lacking[0]}, which the index says it holds")
        adapter = sorted(name for name in tensors if ".lora_A" in name or ".prune_edit_A" in name)
        if adapter:
            raise CheckpointError(
                f"checkpoint: {path} holds weights of an adapter ({adapter[0]}); merge it into its base first"
            )
        if not tensors:
            raise CheckpointError(f"checkpoint: {path} holds no tensors")
        return cls(path, tensors, config)

    @property
    def name(self) -> str:
        """Its folder's or file's name."""
        return self.path.resolve().name


def _config(path: Path) -> dict[str, object]:
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"checkpoint: {file} cannot be read: {error}") from None
    return dict(found)


def _files(path: Path) -> dict[Path, set[str] | None]:
    """Files to read, each with the names that count there; None for all."""
    if path.is_file():
        return {path: None}
    if (path / INDEX).is_file():
        try:
            places = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(f"checkpoint: {path / INDEX} is no index: {error}") from None
        shards: dict[Path, set[str] | None] = {}
        for name, file in places.items():
            names = shards.setdefault(path / file, set())
            assert names is not None
            names.add(name)
        missing = [file.name for file in shards if not file.is_file()]
        if missing:
            amount = f"{len(missing)} of {len(shards)} shards"
            raise CheckpointError(f"checkpoint: {path} lacks {amount}, such as {missing[0]}")
        return shards
    found = sorted(path.glob("*.safetensors"))
    if (path / "model.safetensors").is_file():
        found = [path / "model.safetensors"]
    if [file.name for file in found] == ["adapter_model.safetensors"]:
        raise CheckpointError(f"checkpoint: {path} holds an adapter; peft-prune report shows it, or merge it first")
    if not found:
        pickled = sorted(path.glob("*.bin")) + sorted(path.glob("*.pt*"))
        more = f"; {pickled[0].name} is pickled and is not read, convert it to safetensors" if pickled else ""
        raise CheckpointError(f"checkpoint: {path} holds no safetensors file{more}")
    return dict.fromkeys(found)


def _stored(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            found = {}
            for key in opened.keys():
                part = opened.get_slice(key)
                found[key] = StoredTensor(file, key, tuple(part.get_shape()), _DTYPES.get(part.get_dtype()))
            return found
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint: {file} is damaged or no safetensors file: {error}") from None
