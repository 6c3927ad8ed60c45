"""The one way out: an adapter checked against the servers' limits, then written whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..folders import whole_folder
from ..outputs import require_outputs
from ..tuner.stored import require_no_experts
from .gguf_file import require_gguf, write_gguf
from .lora import write_lora
from .mlx_file import require_mlx, write_mlx
from .servers import chosen_servers, remarks, require_every_layer, require_rank
from .source import Source, source_of
from .uniform import UniformLora, uniform_lora


def _nothing(lora: UniformLora) -> None:
    return None


FORMATS: Mapping[str, tuple[Callable[[UniformLora], None], Callable[[UniformLora, Path], None]]] = MappingProxyType(
    {"lora": (_nothing, write_lora), "gguf": (require_gguf, write_gguf), "mlx": (require_mlx, write_mlx)}
)
"""Each format: what it requires, and what writes it."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Args:
        folder: Where.
        format: ``lora``, ``gguf`` or ``mlx``.
        rank: The uniform rank, which is ``lora_alpha`` as well.
        modules: Names, in the base, of the modules with factors.
        restraint_applied: Whether a restraint was pending and has been applied.
        truncated: ‖ΔW − truncated‖_F / ‖ΔW‖_F by module, for those that were truncated.
        servers: What each server needs, or leaves out, by its name; empty text where nothing.
    """

    folder: Path
    format: str
    rank: int
    modules: tuple[str, ...]
    restraint_applied: bool
    truncated: Mapping[str, float]
    servers: Mapping[str, str]


def export_lora(
    adapter: Any,
    out: str | Path,
    *,
    format: str = "lora",
    rank: int | None = None,
    max_rank: int | None = None,
    fill_layers: bool = False,
    servers: Sequence[str] | None = None,
    base: Any = None,
    adapter_name: str | None = None,
    overwrite: bool = False,
) -> Export:
    """Write an adapter as a plain LoRA: one rank r in all layers, lora_alpha = r, so that every server scales it by 1.

    Args:
        adapter: A PEFT model with a PRUNE_EDIT adapter, the adapter's folder, or ``user/name[@revision]`` on the Hub.
            A pending restraint is applied.
        out: Folder to write.
        format: ``lora`` (vLLM, SGLang, TGI, LoRAX, PEFT, transformers), ``gguf`` (llama.cpp, Ollama) or ``mlx``.
        rank: r; the largest rank of a layer if not given. Smaller ones are padded with zeros.
        max_rank: Truncate larger ranks to this one, with the error in what is returned; `lost_edits` measures what
            it costs.
        fill_layers: Write zero factors for the same modules in all other layers, for TGI and LoRAX.
        servers: Names of the servers that must be able to load it; all that read the format if not given.
        base: For a folder: the model it was made for. ``gguf``, ``mlx`` and ``fill_layers`` need it.
        adapter_name: Which of a model's adapters; the active one if not given.
        overwrite: Replace an existing folder.

    Raises:
        ValueError: An argument is out of range or unknown, or the folder cannot be written.
        AdapterError: The adapter cannot be exported, or a server cannot load its rank.
        UnsupportedModelError: The format does not know the base's architecture.
        MissingPackageError: The format needs a package that is not installed.
    """
    out = Path(out)
    require_format(format)
    inputs = {"adapter": adapter} if isinstance(adapter, (str, Path)) else {}
    require_outputs(folders={"out": out}, inputs=inputs, overwrite=overwrite)
    chosen = chosen_servers(format, servers)
    lora = checked(
        source_of(adapter, base, adapter_name), format, rank, max_rank, fill_layers=fill_layers, servers=servers
    )
    with whole_folder(out, overwrite=overwrite) as folder:
        FORMATS[format][1](lora, folder)
    return Export(
        out,
        format,
        lora.rank,
        tuple(sorted(lora.factors)),
        lora.source.restraint_applied,
        lora.errors,
        remarks(chosen, lora),
    )


def checked(
    source: Source,
    format: str,
    rank: int | None,
    max_rank: int | None,
    *,
    fill_layers: bool,
    servers: Sequence[str] | None,
) -> UniformLora:
    """The LoRA of a source, which the format and the servers can take."""
    for name, value in (("rank", rank), ("max_rank", max_rank)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: {value!r} must be an integer of at least 1")
    require_no_experts(source.updates)
    chosen = chosen_servers(format, servers)
    lora = uniform_lora(source, rank=rank, max_rank=max_rank, fill_layers=fill_layers)
    require_rank(chosen, lora)
    if servers is not None:
        require_every_layer(chosen, lora)
    FORMATS[format][0](lora)
    return lora


def require_format(format: str) -> None:
    """Raise ValueError for a format that is unknown."""
    if format not in FORMATS:
        raise ValueError(f"format: {format!r} is not one of {', '.join(FORMATS)}")
