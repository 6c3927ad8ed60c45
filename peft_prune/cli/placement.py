"""How a command loads its model: quantized, and on which devices; the same options for every command that loads one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, Optional

import typer

from ..errors import MissingPackageError, UnsupportedModelError
from .command import option, taking

QUANTIZATIONS = ("8bit", "4bit", "fp4", "4bit-double", "torchao-int8", "torchao-float8", "quanto-int8")
"""What ``--quantization`` takes: bitsandbytes' int8, nf4, fp4 and nf4 with quantized scales; weights of the others."""

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")

Quantization = Annotated[
    Optional[str], typer.Option(help=f"Quantize the model while it is loaded: {', '.join(QUANTIZATIONS)}.")
]
DeviceMap = Annotated[
    Optional[str], typer.Option(help="Spread the model: auto, balanced, sequential, or a JSON object of modules.")
]
MaxMemory = Annotated[
    Optional[str], typer.Option(help="Limits for --device-map, such as 0=20GiB,cpu=60GiB.", metavar="LIMITS")
]
Device = Annotated[Optional[str], typer.Option(help="Device to load the model on, as torch names it.")]


@dataclass(frozen=True)
class Placement:
    """What the options say; `arguments` is what ``from_pretrained`` takes for it."""

    quantization: Quantization = None
    device_map: DeviceMap = None
    max_memory: MaxMemory = None
    device: Device = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``.

        Raises:
            UnsupportedModelError: A value is none that is accepted.
            MissingPackageError: The library that quantizes is not installed.
        """
        found: dict[str, Any] = {}
        if self.quantization is not None:
            found["quantization_config"] = _configuration(self.quantization)
        if self.device is not None and self.device_map is not None:
            raise UnsupportedModelError("device: cannot be given with device_map, which names the devices")
        if self.max_memory is not None and self.device_map not in _MAPS:
            raise UnsupportedModelError(f"max_memory: needs device_map to be one of {', '.join(_MAPS)}")
        if self.device is not None:
            found["device_map"] = {"": _device(self.device)}
        if self.device_map is not None:
            found["device_map"] = _map(self.device_map)
        if self.max_memory is not None:
            found["max_memory"] = _limits(self.max_memory)
        return found


def placed(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the options of `Placement` in place of its parameter ``placement``."""
    kinds = zip(fields(Placement), (Quantization, DeviceMap, MaxMemory, Device), strict=True)
    options = [option(field.name, kind, None) for field, kind in kinds]

    @wraps(command)
    def run(*args: Any, **given: Any) -> Any:
        own = {one.name: given.pop(one.name, None) for one in options}
        return command(*args, **given, placement=Placement(**own))

    parameters = inspect.signature(command, eval_str=True).parameters.values()
    return taking(run, [*(one for one in parameters if one.name != "placement"), *options])


def _configuration(word: str) -> Any:
    if word not in QUANTIZATIONS:
        raise UnsupportedModelError(f"quantization: {word!r} is not one of {', '.join(QUANTIZATIONS)}")
    from transformers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig

    try:
        if word == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        if word in ("4bit", "fp4", "4bit-double"):
            kind, double = "fp4" if word == "fp4" else "nf4", word == "4bit-double"
            return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double)
        if word.startswith("torchao"):
            from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

            return TorchAoConfig(Int8WeightOnlyConfig() if word.endswith("int8") else Float8WeightOnlyConfig())
        import optimum.quanto  # noqa: F401

        return QuantoConfig(weights="int8")
    except ImportError:
        extra = {"t": "torchao", "q": "quanto"}.get(word[0], "quantization")
        raise MissingPackageError(
            f"quantization: the library for {word!r} is not installed; pip install 'peft-prune[{extra}]'"
        ) from None


def _device(text: str) -> Any:
    import torch

    try:
        return torch.device(text)
    except RuntimeError:
        raise UnsupportedModelError(f"device: {text!r} is no device that torch knows") from None


def _map(text: str) -> Any:
    if text in _MAPS:
        return text
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found:
        raise UnsupportedModelError(
            f"device_map: {text!r} is neither one of {', '.join(_MAPS)} nor a JSON object of modules and devices"
        )
    return found


def _limits(text: str) -> dict[int | str, str]:
    found: dict[int | str, str] = {}
    for part in text.split(","):
        device, equals, size = (word.strip() for word in part.partition("="))
        if not (device and equals and size):
            raise UnsupportedModelError(f"max_memory: {part!r} is no limit such as 0=20GiB or cpu=60GiB")
        found[int(device) if device.isdigit() else device] = size
    return found
