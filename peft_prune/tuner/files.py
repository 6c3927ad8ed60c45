"""What stands in a saved adapter, and how a saved one comes back: restrained factors, facts, ranks from the file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import AdapterError
from ..models.fingerprint import base_fingerprint, modules_in, same_base, short_form
from ..models.naming import model_name
from ..models.sharding import is_sharded
from ..spectral import LowRankUpdate
from .beneath import adapters_beneath
from .config import PruneEditConfig
from .header import name_in_base
from .layer import PruneEditLayer
from .registration import PREFIX
from .state import AccumulatedUpdate, checksum, trained_pending

MARK = PREFIX + "restrained"
"""An entry beside the factors: they are restrained, whatever configuration they are loaded with."""

NamedLayers: TypeAlias = Iterable[tuple[str, PruneEditLayer]]

FACTORS = (PREFIX + "B", PREFIX + "A")
FACTOR_KEY = re.compile(rf"\.{PREFIX}[AB]\.weight$")


def saved_factors(layers: NamedLayers, adapter_name: str, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a state dict that change because a restraint was pending or a factor is offloaded or sharded.

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
        if layer.apply_pending_restraint(adapter_name) or any(
            entries[key].is_meta or is_sharded(entries[key]) for key in keys
        ):
            update = layer.effective_update(adapter_name)
            changed.update(zip(keys, (update.B, update.A), strict=True))
    return changed


def without_other_methods(model: nn.Module, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries without those of other methods' layers, which PEFT collects as well where they lie beneath."""
    others = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and not isinstance(module, PruneEditLayer)
    )
    return {key: value for key, value in entries.items() if PREFIX in key or not key.startswith(others)}


def restraint_mark(layers: NamedLayers, adapter_name: str, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """An entry that says of the factors in ``entries`` that they are restrained; none where they are not."""
    if not _all_restrained([layer for _, layer in layers], adapter_name):
        return {}
    prefix = "base_model.model." if any(key.startswith("base_model.model.") for key in entries) else ""
    return {prefix + MARK: torch.ones(1)}


def without_mark(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries without what `restraint_mark` has added."""
    return {key: value for key, value in state_dict.items() if name_in_base(key) != MARK}


def _all_restrained(layers: list[PruneEditLayer], adapter_name: str) -> bool:
    restrained = any(layer.is_restrained(adapter_name) for layer in layers)
    return restrained and not any(layer.restraint_is_pending(adapter_name) for layer in layers)


def record_facts(config: PruneEditConfig, layers: NamedLayers, adapter_name: str) -> None:
    """Note in the configuration what the saved factors are: restrained or not, of which ranks, how many edits."""
    named = [(name_in_base(name), layer) for name, layer in layers]
    config.record(
        restrained=_all_restrained([layer for _, layer in named], adapter_name),
        edits=max((layer.prune_edit_update[adapter_name].edits for _, layer in named), default=0),
        consolidated=max((layer.consolidated_edits(adapter_name) for _, layer in named), default=0),
        ranks={name: layer.rank(adapter_name) for name, layer in named},
    )


def load_factors(
    layers: NamedLayers, config: PruneEditConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> None:
    """Give every layer the rank that the file has for it; PEFT copies the values afterwards.

    Raises:
        AdapterError: The file lacks a factor, has one of the wrong shape or one with NaN or Inf, or has factors that
            no layer takes.
    """
    restrained = says_restrained(config, state_dict)
    by_name: dict[str, str] = {}
    for key in [key for key in state_dict if FACTOR_KEY.search(key)]:
        if by_name.setdefault(name_in_base(key), key) != key:
            raise AdapterError(f"{key}: stands twice in the adapter's file, also as {by_name[name_in_base(key)]}")
    for name, layer in layers:
        wanted = [f"{name_in_base(name)}.{factor}.weight" for factor in FACTORS]
        for key in wanted:
            if key not in by_name:
                raise AdapterError(
                    f"{key}: is missing in the adapter's file; the file is incomplete or made for another base"
                )
        up, down = (state_dict[by_name.pop(key)] for key in wanted)
        if not _fit(layer, up, down):
            raise AdapterError(
                f"{name_in_base(name)}: the adapter's factors are {tuple(up.shape)} and {tuple(down.shape)}, this base "
                f"needs ({layer.out_features}, r) and (r, {layer.in_features}); the adapter was made for another base"
            )
        if not all(bool(torch.isfinite(factor).all()) for factor in (up, down) if not factor.is_meta):
            raise AdapterError(f"{name_in_base(name)}: the adapter's factors hold NaN or Inf; the file is damaged")
        _prepare(layer, config, adapter_name, LowRankUpdate(B=up, A=down), restrained)
    if by_name:
        raise AdapterError(
            f"{sorted(by_name)[0]}: the adapter holds factors for a layer that this base does not adapt "
            f"({len(by_name)} such factors)"
        )


def updates_in(state_dict: Mapping[str, Tensor]) -> dict[str, LowRankUpdate]:
    """The update of every layer in the entries of a saved adapter, by its name in the base.

    Raises:
        AdapterError: An entry is no factor, a factor lacks its other one, or one is of another kind or not finite.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in without_mark(dict(state_dict)).items():
        if not FACTOR_KEY.search(key):
            raise AdapterError(f"{name_in_base(key)}: is no factor; an adapter with factors alone is accepted here")
        name, factor = name_in_base(key).removesuffix(".weight").rsplit(f".{PREFIX}", 1)
        if not bool(torch.isfinite(value).all()):
            raise AdapterError(f"{name}: the adapter's factors hold NaN or Inf; the file is damaged")
        found.setdefault(name, {})[factor] = value
    updates = {}
    for name, factors in found.items():
        if set(factors) != {"A", "B"}:
            raise AdapterError(f"{name}: the adapter's file holds one factor of two; the file is damaged")
        try:
            updates[name] = LowRankUpdate(B=factors["B"], A=factors["A"])
        except ValueError as error:
            raise AdapterError(f"{name}: the adapter's file is damaged: {error}") from None
    return updates


def says_restrained(config: PruneEditConfig, state_dict: Mapping[str, Tensor]) -> bool:
    """Whether a saved adapter says of its factors that they are restrained."""
    return config.restrained or config.consolidated > 0 or any(name_in_base(key) == MARK for key in state_dict)


def renamed(own_keys: Iterable[str], state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries with the factors under this model's own keys, also where the base was wrapped otherwise."""
    own = {name_in_base(key): key for key in own_keys}
    return {own.get(name_in_base(key), key) if FACTOR_KEY.search(key) else key: v for key, v in state_dict.items()}


def require_entries_fit(model: nn.Module, entries: dict[str, Tensor]) -> None:
    """Raise AdapterError where an entry beside the factors is of another shape than the model's, or not in it."""
    own = model.state_dict()
    for key, value in entries.items():
        mine = own.get(key, own.get(key.removeprefix("base_model.model.")))
        if mine is not None and (mine.shape == value.shape or FACTOR_KEY.search(key)):
            continue
        name = name_in_base(key)
        if mine is None:
            raise AdapterError(f"{name}: the adapter's file holds it, this base does not")
        hint = ""
        if "embed" in name or "lm_head" in name or "wte" in name:
            hint = f"; it was made for a base with {value.shape[0]} tokens, call resize_token_embeddings first"
        raise AdapterError(
            f"{name}: is {tuple(value.shape)} in the adapter's file and {tuple(mine.shape)} in this base{hint}"
        )


def _fit(layer: PruneEditLayer, up: Tensor, down: Tensor) -> bool:
    are_factors = up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0]
    return are_factors and (up.shape[0], down.shape[1]) == (layer.out_features, layer.in_features)


def _prepare(
    layer: PruneEditLayer, config: PruneEditConfig, adapter_name: str, update: LowRankUpdate, restrained: bool
) -> None:
    """Give the layer the rank and the state that belong to these factors."""
    down, up = layer.factors(adapter_name)
    if update.rank > 0 and _same(up.weight, update.B) and _same(down.weight, update.A):
        return  # an optimizer's or a trainer's own copy comes back: the raw factors still belong to it
    if _same_product(layer.effective_update(adapter_name), update):
        layer.take_basis(adapter_name, update)
        return  # the layer's own saved file comes back, in the basis that it was saved in
    layer.set_rank(adapter_name, update.rank)
    layer.prune_edit_update[adapter_name] = loaded_state(config, update, restrained)


def loaded_state(config: PruneEditConfig, update: LowRankUpdate, restrained: bool) -> AccumulatedUpdate:
    """What is known of factors beside themselves that were loaded with this configuration."""
    # Only a saved configuration has ranks. Without one, the factors come as a bare state dict, and collecting that
    # has applied what was pending.
    pending = update.rank > 0 and config.ranks is not None and not restrained
    noticed = restrained or config.restrain_on == "merge"
    return AccumulatedUpdate(
        raw_lost=restrained,
        edits=config.edits,
        consolidated=config.consolidated,
        pending=max(config.edits, trained_pending(config)) if pending else 0,
        checksum=checksum(update) if noticed else None,
        watched=noticed,
    )


def _same(one: Tensor, other: Tensor) -> bool:
    comparable = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return comparable and not one.is_meta and torch.equal(one, other)


def _same_product(one: LowRankUpdate, other: LowRankUpdate) -> bool:
    """Whether two updates in float32 or wider are one ΔW in different factors, to the rounding of these."""
    comparable = (one.dtype, one.device) == (other.dtype, other.device) and min(one.rank, other.rank) > 0
    if not comparable or one.B.is_meta or one.dtype.itemsize < 4 or not _finite(one):
        return False
    gap = one.append(other.scaled(-1.0)).frobenius_norm()
    return gap <= 16 * torch.finfo(one.dtype).eps * max(one.frobenius_norm(), other.frobenius_norm())


def _finite(update: LowRankUpdate) -> bool:
    return bool(torch.isfinite(update.B).all() and torch.isfinite(update.A).all())


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
