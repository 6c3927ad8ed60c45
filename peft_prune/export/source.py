"""What is exported: the effective update of an adapter, out of a model or out of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import AdapterError
from ..hub import adapter_folder
from ..models.mlp import features
from ..models.naming import public_name
from ..models.quantization import form_of
from ..spectral import LowRankUpdate
from ..tuner import PruneEditConfig, PruneEditModel
from ..tuner.files import FACTOR_KEY, MARK
from ..tuner.header import name_in_base
from ..tuner.state import trained_pending


@dataclass(frozen=True)
class Source:
    """An adapter's effective update and what is known of its base.

    Args:
        updates: B (out, r) and A (r, in) by the module's name in the base; layers without edits are left out.
        base_name: Public name of the base.
        transposed: Whether the base stores these weights as (in, out), as GPT-2 does; None where that is not known.
        shapes: (out, in) of all linear modules of the base by name; empty where there is no base.
        config: The base's configuration; None where there is no base.
        restraint_applied: Whether a restraint was pending and has been applied.
        quantized: Whether the base holds the edited weights in a quantized format.
    """

    updates: Mapping[str, LowRankUpdate]
    base_name: str | None
    transposed: bool | None = None
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    config: Any = None
    restraint_applied: bool = False
    quantized: bool = False


def source_of(adapter: Any, base: Any = None, adapter_name: str | None = None) -> Source:
    """The effective update of a model with an adapter, or of an adapter's folder.

    A pending restraint is applied, as saving does; in a folder it can only be where the base is given.

    Args:
        adapter: A PEFT model with a PRUNE_EDIT adapter, the adapter's folder, or ``user/name[@revision]`` on the Hub.
        base: For a folder: the model it was made for.
        adapter_name: Which of a model's adapters; the active one if not given.

    Raises:
        AdapterError: The folder or the model has no whole PRUNE_EDIT adapter, it holds no edits, or something that
            no LoRA holds; it was made for another base; a restraint is pending and the base is not given.
        HubError: The repository cannot be fetched.
    """
    if not isinstance(adapter, (str, Path)):
        return _of_model(adapter, adapter_name)
    folder = adapter_folder(adapter)
    config = _config(folder)
    if base is None:
        return _of_folder(folder, config)
    try:
        return _of_model(PeftModel.from_pretrained(base, str(folder), strict_base=True), None)
    except (SafetensorError, KeyError, OSError) as error:
        raise AdapterError(f"adapter: {folder} cannot be loaded: {error}") from None


def _of_model(model: Any, adapter_name: str | None) -> Source:
    tuner = getattr(model, "base_model", model)
    if not isinstance(tuner, PruneEditModel):
        raise AdapterError(f"adapter: {type(model).__name__} carries no PRUNE_EDIT adapter")
    adapter_name = tuner.one_adapter(adapter_name)
    config = tuner.peft_config[adapter_name]
    _require_factors_alone(config, config.to_dict().get("beneath"))
    layers = [(name_in_base(name), layer) for name, layer in tuner.edited_layers(adapter_name)]
    pending = tuner.restraint_is_pending(adapter_name)
    for _, layer in layers:
        layer.apply_pending_restraint(adapter_name)
    updates = {name: layer.effective_update(adapter_name).to("cpu") for name, layer in layers}
    transposed = {layer.fan_in_fan_out for name, layer in layers if updates[name].rank}
    return Source(
        _with_edits(updates),
        public_name(config.base_model_name_or_path),
        transposed.pop() if len(transposed) == 1 else None,
        _shapes(tuner.model),
        getattr(tuner.model, "config", None),
        pending,
        any(form_of(layer.get_base_layer()) is not None for _, layer in layers),
    )


def _of_folder(folder: Path, config: PruneEditConfig) -> Source:
    _require_factors_alone(config, config.beneath)
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"adapter: {folder / 'adapter_model.safetensors'} cannot be read: {error}") from None
    factors: dict[str, dict[str, Tensor]] = {}
    restrained = config.restrained
    for key, tensor in tensors.items():
        name, found = name_in_base(key), FACTOR_KEY.search(key)
        if found:
            factors.setdefault(name_in_base(key[: found.start()]), {})[found[0][-8]] = tensor
        elif name == MARK:
            restrained = True
        else:
            raise AdapterError(f"{name}: the adapter's file holds it beside the factors; no LoRA can")
    updates = _with_edits({name: _update(name, pair) for name, pair in factors.items()})
    restrains = any(config.restraint_of(name).name != "none" for name in updates)
    if restrains and not restrained and max(config.edits, trained_pending(config)) > 0:
        raise AdapterError(
            f"adapter: {folder} has a pending restraint ({config.restraint}), which needs σmax of the base's weights; "
            "give the base (base, --base)"
        )
    return Source(updates, public_name(config.base_model_name_or_path))


def _update(name: str, pair: Mapping[str, Tensor]) -> LowRankUpdate:
    if set(pair) != {"A", "B"}:
        raise AdapterError(f"{name}: one of its two factors is missing in the adapter's file")
    if not all(bool(torch.isfinite(factor).all()) for factor in pair.values()):
        raise AdapterError(f"{name}: the adapter's factors hold NaN or Inf; the file is damaged")
    try:
        return LowRankUpdate(B=pair["B"], A=pair["A"])
    except ValueError as error:
        raise AdapterError(f"{name}: the adapter's factors do not fit together: {error}") from None


def _with_edits(updates: Mapping[str, LowRankUpdate]) -> dict[str, LowRankUpdate]:
    found = {name: update for name, update in updates.items() if update.rank > 0}
    if not found:
        raise AdapterError("adapter: it holds no edits, so there is nothing to export")
    return found


def _require_factors_alone(config: PruneEditConfig, beneath: list[str] | None) -> None:
    if config.modules_to_save or config.bias != "none":
        what = f"modules_to_save {config.modules_to_save}" if config.modules_to_save else f"biases ({config.bias})"
        raise AdapterError(f"adapter: it holds {what} beside its factors, which servers do not load from a LoRA")
    if beneath:
        raise AdapterError(
            f"adapter: it was made over a base with other adapters beneath it ({', '.join(beneath)}); merge those into "
            "the base first"
        )


def _config(folder: Path) -> PruneEditConfig:
    path = folder / "adapter_config.json"
    if not path.is_file() or not (folder / "adapter_model.safetensors").is_file():
        missing = path.name if not path.is_file() else "adapter_model.safetensors"
        raise AdapterError(f"adapter: {folder} holds no {missing}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise AdapterError(f"adapter: {path} is no JSON document: {error}") from None
    kind = fields.get("peft_type") if isinstance(fields, dict) else None
    if kind != "PRUNE_EDIT":
        raise AdapterError(f"adapter: {folder} is of type {kind}, PRUNE_EDIT is accepted")
    try:
        return PruneEditConfig.from_pretrained(str(folder))
    except (TypeError, ValueError) as error:
        raise AdapterError(f"adapter: {path}: {error}") from None


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    found = {}
    for name, module in model.named_modules():
        sides = features(module)
        if sides is not None and ".prune_edit_" not in f".{name}":
            found[name_in_base(name).removesuffix(".base_layer")] = (sides[1], sides[0])
    return found
