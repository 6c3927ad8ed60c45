"""What each server accepts of a LoRA, as data; read from their loaders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import AdapterError
from .uniform import UniformLora


@dataclass(frozen=True)
class Server:
    """One server and what it accepts.

    Args:
        name: What it is called.
        forms: Formats of export that it loads.
        limits: Values that its option for the largest rank takes, ascending; empty where any rank is loaded.
        option: How that option is given when the server is started.
        every_layer: It leaves out a kind of module of which one layer has no factors.
        within_sides: It takes a factor whose rank is above its other side for a transposed one.
        source: The loader's file, where this was read.
    """

    name: str
    forms: tuple[str, ...]
    source: str
    limits: tuple[int, ...] = ()
    option: str = ""
    every_layer: bool = False
    within_sides: bool = False

    def refusal(self, rank: int, side: int) -> str | None:
        """Why it cannot load this rank, in a few words; None where it can.

        Args:
            rank: The LoRA's uniform rank.
            side: The smallest side of a layer that it changes.
        """
        if self.limits and rank > self.limits[-1]:
            return f"{self.name} takes ranks up to {self.limits[-1]}"
        if self.within_sides and rank > side:
            return f"{self.name} takes ranks up to {side}, the smallest side of a layer"
        return None

    def setting(self, rank: int) -> str:
        """The option with which the server must be started for this rank; empty where none is needed."""
        needed = next((limit for limit in self.limits if limit >= rank), None)
        return self.option.format(rank if needed is None else needed) if self.option else ""


SERVERS = (
    Server(
        "vLLM",
        ("lora",),
        "vllm/config/lora.py, vllm/lora/peft_helper.py",
        limits=(1, 8, 16, 32, 64, 128, 256, 320, 512),
        option="--max-lora-rank {}",
    ),
    Server("SGLang", ("lora",), "sglang/srt/lora/lora_config.py", option="--max-lora-rank {}"),
    Server("TGI", ("lora",), "text_generation_server/adapters/lora.py", every_layer=True),
    Server("LoRAX", ("lora",), "lorax_server/adapters/lora.py", every_layer=True),
    Server("PEFT", ("lora",), "peft/tuners/lora"),
    Server("transformers", ("lora",), "transformers/integrations/peft.py"),
    Server("llama.cpp", ("gguf",), "src/llama-adapter.cpp"),
    Server("Ollama", ("lora", "gguf"), "convert/convert_llama_adapter.go", within_sides=True),
    Server("MLX", ("mlx",), "mlx_lm/tuner/utils.py"),
)
"""Every server that an export is made for."""


def chosen_servers(form: str, names: Sequence[str] | None) -> tuple[Server, ...]:
    """The servers that must be able to load an export: those named, or all that read its format.

    Raises:
        ValueError: A name is unknown, or that server does not read the format.
    """
    readers = {server.name.lower(): server for server in SERVERS if form in server.forms}
    if names is None:
        return tuple(readers.values())
    for name in names:
        if name.lower() not in readers:
            accepted = ", ".join(server.name for server in readers.values())
            raise ValueError(f"servers: {name!r} is none that reads the format {form!r}; these do: {accepted}")
    return tuple(readers[name.lower()] for name in names)


def require_rank(servers: Iterable[Server], lora: UniformLora) -> None:
    """Raise AdapterError where one of the servers cannot load a LoRA of this rank; the message names them all."""
    servers = tuple(servers)
    refusals = [refusal for server in servers if (refusal := server.refusal(lora.rank, lora.smallest_side))]
    if not refusals:
        return
    able = [server.name for server in servers if not server.refusal(lora.rank, lora.smallest_side)]
    other = f"; {', '.join(able)} could load it: name the servers that must" if able else ""
    raise AdapterError(
        f"rank: {lora.rank} cannot be loaded everywhere: {'; '.join(refusals)}; truncate with max_rank (--max-rank)"
        + other
        + (" (--server)" if able else "")
    )


def require_every_layer(servers: Iterable[Server], lora: UniformLora) -> None:
    """Raise AdapterError where a server that was asked for would leave out a kind of module."""
    needing = [server.name for server in servers if server.every_layer]
    if needing and lora.incomplete:
        raise AdapterError(
            f"servers: {', '.join(needing)} would leave out {', '.join(lora.incomplete)}, which not every layer has; "
            "fill the other layers with zero factors (fill_layers, --fill-layers)"
        )


def remarks(servers: Iterable[Server], lora: UniformLora) -> dict[str, str]:
    """What each server needs to load this LoRA, by its name; empty text where nothing."""
    found = {}
    for server in servers:
        said = server.setting(lora.rank)
        if server.every_layer and lora.incomplete:
            said = f"leaves out {', '.join(lora.incomplete)} (fill_layers, --fill-layers)"
        found[server.name] = said
    return found
