"""The file of a MEND network: its weights, its optimizer and how far its training is."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import AdapterError
from ..folders import whole_file
from ..models.fingerprint import same_base
from .mend_network import Network


def save_network(path: Path, network: Network, optimizer: torch.optim.Optimizer, step: int, base: str | None) -> None:
    """One safetensors file with the network, the optimizer's moments and the step; whole or not at all."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    metadata = {"kind": "mend", "step": str(step), "base": base or "", "layers": json.dumps(network.layers)}
    with whole_file(path) as part:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, part, metadata)


def load_network(path: Path, network: Network, optimizer: torch.optim.Optimizer | None, base: str | None) -> int:
    """Read what `save_network` wrote and return its step."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"weights: {path} cannot be read: {error}") from None
    if metadata.get("kind") != "mend" or not {"base", "layers", "step"} <= set(metadata):
        raise AdapterError(f"weights: {path} holds no MEND network")
    if base is not None and metadata["base"] and not same_base(metadata["base"], base):
        raise AdapterError(f"weights: {path} was trained for another base; train one for this base")
    if metadata["layers"] != json.dumps(network.layers):
        raise AdapterError(f"weights: {path} was trained for layers {metadata['layers']}, not {list(network.layers)}")
    if not metadata["step"].isdecimal():
        raise AdapterError(f"weights: {path}: step: {metadata['step']!r} must be a whole number")
    own = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    if {name: tuple(t.shape) for name, t in own.items()} != shapes:
        raise AdapterError(f"weights: {path} has another rank or other widths than the network asked for")
    network.load_state_dict(own)
    if optimizer is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, field = rest.partition(".")
                state.setdefault(int(index), {})[field] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])
