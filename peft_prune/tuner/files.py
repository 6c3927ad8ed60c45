"""What stands in a saved adapter, and how a saved one comes back: restrained factors, facts, ranks from the file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from ..models.fingerprint import base_fingerprint, modules_in, same_base, short_form
from ..models.naming import model_name
from ..spectral import LowRankUpdate
from .beneath import adapters_beneath
from .config import PruneEditConfig
from .layer import AccumulatedUpdate, PruneEditLayer, checksum, trained_pending
from .registration import PREFIX

NamedLayers: TypeAlias = Iterable[tuple[str, PruneEditLayer]]

FACTORS = (PREFIX + "B", PREFIX + "A")
FACTOR_KEY = re.compile(rf"\.{PREFIX}[AB]\.weight$")
WRAPPERS = re.compile(r"(base_model\.model\.|_fsdp_wrapped_module\.|_orig_mod\.)")


def name_in_base(name: str) -> str:
    """A module's name without what PEFT, FSDP and torch.compile put before and into it."""
    return WRAPPERS.sub("", name)


def saved_factors(layers: NamedLayers, adapter_name: str, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a state dict that change because a restraint was pending or a factor is offloaded.

    Applies the pending restraint, so that the model in memory and the file agree. Where the entries are gathered from
    shards, and the base weight is not at hand, the restraint stays pending and a warning says so.
    """
    changed: dict[str, Tensor] = {}
    for name, layer in layers:
        keys = [f"{name.replace('_fsdp_wrapped_module.', '')}.{factor}.{adapter_name}.weight" for factor in FACTORS]
        present = all(key in entries for key in keys)
        if not present or entries[keys[0]].shape != layer.prune_edit_B[adapter_name].weight.shape:
            if layer.restraint_is_pending(adapter_name):
                warnings.warn(
                    f"{name}: its factors are sharded, so the pending restraint cannot be applied here; the saved "
                    "adapter is marked as not restrained"
                )
            continue
        if layer.apply_pending_restraint(adapter_name) or any(entries[key].is_meta for key in keys):
            update = layer.effective_update(adapter_name)
            changed.update(zip(keys, (update.B, update.A), strict=True))
    return changed


def record_facts(config: PruneEditConfig, layers: NamedLayers, adapter_name: str) -> None:
    """Note in the configuration what the saved factors are: restrained or not, of which ranks, how many edits."""
    named = [(name_in_base(name), layer) for name, layer in layers]
    config.record(
        restrained=any(layer.is_restrained(adapter_name) for _, layer in named)
        and not any(layer.restraint_is_pending(adapter_name) for _, layer in named),
        edits=max((layer.prune_edit_update[adapter_name].edits for _, layer in named), default=0),
        ranks={name: layer.rank(adapter_name) for name, layer in named},
    )


def load_factors(
    layers: NamedLayers, config: PruneEditConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> None:
    """Give every layer the rank that the file has for it; PEFT copies the values afterwards.

    Raises:
        AdapterError: The file lacks a factor, has one of the wrong shape, or has factors that no layer takes.
    """
    left = {key for key in state_dict if FACTOR_KEY.search(key)}
    for name, layer in layers:
        name = name_in_base(name)
        keys = [_key_in_file(f"{name}.{factor}.weight", state_dict) for factor in FACTORS]
        up, down = (state_dict[key] for key in keys)
        if not _fit(layer, up, down):
            raise AdapterError(
                f"{name}: the adapter's factors are {tuple(up.shape)} and {tuple(down.shape)}, this base needs "
                f"({layer.out_features}, r) and (r, {layer.in_features}); the adapter was made for another base"
            )
        _prepare(layer, config, adapter_name, LowRankUpdate(B=up, A=down))
        left -= set(keys)
    if left:
        raise AdapterError(
            f"{sorted(left)[0]}: the adapter holds factors for a layer that this base does not adapt "
            f"({len(left)} such factors)"
        )


def _fit(layer: PruneEditLayer, up: Tensor, down: Tensor) -> bool:
    are_factors = up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0]
    return are_factors and (up.shape[0], down.shape[1]) == (layer.out_features, layer.in_features)


def _prepare(layer: PruneEditLayer, config: PruneEditConfig, adapter_name: str, update: LowRankUpdate) -> None:
    """Give the layer the rank and the state that belong to these factors."""
    own = (layer.prune_edit_B[adapter_name].weight, layer.prune_edit_A[adapter_name].weight)
    if update.rank > 0 and _same(own[0], update.B) and _same(own[1], update.A):
        return  # an optimizer's or a trainer's own copy comes back: the raw factors still belong to it
    layer.set_rank(adapter_name, update.rank)
    # Only a saved configuration has ranks. Without one, the factors come as a bare state dict, and collecting that
    # has applied what was pending.
    pending = update.rank > 0 and config.ranks is not None and not config.restrained
    noticed = config.restrained or config.restrain_on == "merge"
    layer.prune_edit_update[adapter_name] = AccumulatedUpdate(
        raw_lost=config.restrained,
        edits=config.edits,
        pending=max(config.edits, trained_pending(config)) if pending else 0,
        checksum=checksum(update) if noticed else None,
    )


def _same(one: Tensor, other: Tensor) -> bool:
    comparable = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return comparable and not one.is_meta and torch.equal(one, other)


def check_base(model: nn.Module, config: PruneEditConfig, modules: Iterable[str] = ()) -> None:
    """Compare the base with the one that the adapter was made for, and remember it for saving.

    Args:
        model: The base, with whatever adapters it carries.
        config: The adapter's configuration.
        modules: Names of the modules that it adapts, in the base.

    Raises:
        AdapterError: They differ, and the configuration asks to be strict; or the fingerprint in it is malformed.
    """
    made_for = config.base_fingerprint
    found = base_fingerprint(model, [*modules, *modules_in(made_for)])
    beneath = adapters_beneath(model)
    message = None
    if made_for is not None and not same_base(made_for, found):
        message = (
            f"The adapter was made for {config.base_model_name_or_path or 'another base'} (weights "
            f"{short_form(made_for)}), but the base is {model_name(model)} (weights {short_form(found)}). Its edits "
            "need not hold here; a checkpoint that they were merged into would have them twice."
        )
    elif config.beneath is not None and config.beneath != beneath:
        message = (
            f"The adapter was made over a base with {_listed(config.beneath)}, but this base has {_listed(beneath)}. "
            "Its edits need not hold here."
        )
    if message is not None and config.strict_base:
        raise AdapterError(message)
    if message is not None:
        warnings.warn(message)
    config.record(base_fingerprint=str(found), beneath=beneath)
    config.places = {str(place) for place in _places(model) if place}


def _listed(adapters: list[str]) -> str:
    return f"adapters beneath it ({', '.join(adapters)})" if adapters else "no other adapter"


def _places(model: nn.Module) -> Iterator[str | None]:
    yield getattr(model, "name_or_path", None)
    yield getattr(getattr(model, "config", None), "_name_or_path", None)


def _key_in_file(key: str, state_dict: dict[str, Tensor]) -> str:
    for candidate in ("base_model.model." + key, key):
        if candidate in state_dict:
            return candidate
    raise AdapterError(f"{key}: is missing in the adapter's file; the file is incomplete or made for another base")
