"""A new adapter from others of the same model: their raw updates are added, and restrained once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.utils.other import _freeze_adapter

from ..errors import AdapterError
from ..models.fingerprint import same_base, short_form
from ..spectral import LowRankUpdate, reduced, restraint_text, truncate, weighted_sum
from .config import PruneEditConfig
from .header import name_in_base
from .layer import PruneEditLayer, layers_of

COMBINATIONS = ("cat", "svd", "linear")
_INHERITED = (
    *("restrain_on", "restrain_every", "max_condition_growth", "max_update_norm", "max_output_perturbation"),
    *("task_type", "base_model_name_or_path", "revision"),
)
_Layers = dict[str, PruneEditLayer]


def add_weighted(
    tuner: Any,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    restraint: str | None = None,
    max_rank: int | None = None,
) -> None:
    """Add the adapter Σ w ΔW of others; where a restraint has acted, F(Σ w raw ΔW) and not Σ w F(raw ΔW).

    Args:
        tuner: The `PruneEditModel`.
        adapters: Names of adapters that it holds.
        weights: One for each; negative ones subtract.
        adapter_name: Name of the new adapter.
        restraint: A word such as ``"log:1.2"`` for every layer; the adapters' own, which must agree, if not given.
        max_rank: Rank that the result is truncated to; the smallest of the adapters' own limits if not given.

    Raises:
        ValueError: A name or a weight is none, or the adapters' restraints differ.
        AdapterError: The adapters were made for different bases, or train more than factors.
    """
    _check(tuner, adapters, weights, adapter_name)
    sources = {name: {name_in_base(key): layer for key, layer in layers_of(tuner.model, name)} for name in adapters}
    for name, own in sources.items():
        _require_unmerged(name, own)
    layers: _Layers = {module: layer for own in sources.values() for module, layer in own.items()}
    words = _restraints(sources, layers, restraint)
    lost = [name for name, own in sources.items() if any(layer.raw_is_lost(name) for layer in own.values())]
    parts = list(zip(adapters, weights, strict=True))
    sums = {module: _sum(layer, parts, bool(lost)) for module, layer in layers.items()}
    acted = any(layer.is_restrained(name) for name, own in sources.items() for layer in own.values())
    _add_empty(tuner, adapters, layers, adapter_name, words, max_rank)
    edits = sum(max(layer.prune_edit_update[name].edits for layer in own.values()) for name, own in sources.items())
    if lost:
        _warn_of_lost(lost)
    limit = tuner.peft_config[adapter_name].max_rank
    for module, layer in layers.items():
        if lost:
            update = sums[module]
            update = truncate(update, rank=limit)[0] if limit is not None and update.rank > limit else update
            layer.set_restrained_update(adapter_name, update, edits)
            continue
        layer.set_raw_update(adapter_name, sums[module], edits)
        if acted or (limit is not None and sums[module].rank > limit):
            layer.apply_restraint(adapter_name)


def require_same_base(fingerprints: Mapping[str, str | None]) -> None:
    """Raise AdapterError where two of the fingerprints, by what they belong to, are not of the same weights."""
    known = [(name, text) for name, text in fingerprints.items() if text is not None]
    for name, text in known[1:]:
        if not same_base(known[0][1], text):
            raise AdapterError(
                f"adapters: {known[0][0]} and {name} were made for different bases (weights "
                f"{short_form(known[0][1])} and {short_form(text)}); adapters of one base are accepted"
            )


def require_weights(weights: Sequence[float], count: int) -> None:
    """Raise ValueError where there is not one finite weight for each of so many adapters."""
    if len(weights) != count:
        raise ValueError(f"weights: {len(weights)} given for {count} adapters; one for each is accepted")
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise ValueError(f"weights: {weight!r} must be a finite number")


def _check(tuner: Any, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
    if isinstance(adapters, str) or not adapters:
        raise ValueError(f"adapters: {adapters!r} must be a list of adapters' names")
    require_weights(weights, len(adapters))
    known = tuner.peft_config
    for name in adapters:
        if name not in known:
            raise ValueError(f"adapters: {name!r} is not one of {', '.join(known)}")
    if adapter_name in known:
        raise ValueError(f"adapter_name: {adapter_name!r} is there already; give another name, or delete it first")
    for name in adapters:
        if known[name].modules_to_save or known[name].bias != "none":
            raise AdapterError(f"adapter {name!r}: holds biases or whole modules beside its factors, which do not add")
    require_same_base({f"adapter {name!r}": known[name].base_fingerprint for name in adapters})


def _require_unmerged(name: str, layers: _Layers) -> None:
    for layer in layers.values():
        layer.check_update(LowRankUpdate.zeros(layer.out_features, layer.in_features))
    if not layers:
        raise AdapterError(f"adapter {name!r}: adapts no layer")


def _restraints(sources: Mapping[str, _Layers], layers: _Layers, restraint: str | None) -> dict[str, str]:
    """The word of the restraint of every layer."""
    if restraint is not None:
        return dict.fromkeys(layers, restraint)
    words: dict[str, str] = {}
    for name, own in sources.items():
        for module, layer in own.items():
            word = restraint_text(layer.restraint(name))
            if words.setdefault(module, word) != word:
                raise ValueError(
                    f"restraint: the adapters have different ones in {module}, {words[module]} and {word}; say which "
                    "one the sum has"
                )
    return words


def _sum(layer: PruneEditLayer, parts: Sequence[tuple[str, float]], lost: bool) -> LowRankUpdate:
    """Σ w ΔW in one layer: of the raw updates, or, where not all of them are known, of those that act."""
    own = [(name, weight) for name, weight in parts if name in layer.prune_edit_A]
    updates = [layer.leaving_update(name) if lost else layer.raw_update(name) for name, _ in own]
    wide = [update if update.dtype.itemsize >= 4 else update.to(torch.float32) for update in updates]
    return reduced(weighted_sum(wide, [weight * layer.scaling[name] for name, weight in own]))


def _add_empty(
    tuner: Any,
    adapters: Sequence[str],
    layers: _Layers,
    adapter_name: str,
    words: Mapping[str, str],
    max_rank: int | None,
) -> None:
    """An adapter of rank 0 on these layers, with the settings that the others have."""
    configs = [tuner.peft_config[name] for name in adapters]
    settings = {name: getattr(configs[0], name) for name in _INHERITED}
    limits = [config.max_rank for config in configs if config.max_rank is not None]
    config = PruneEditConfig(
        **settings,
        target_modules=list(layers),
        max_rank=max_rank if max_rank is not None else min(limits, default=None),
        inference_mode=True,
    )
    tuner.peft_config[adapter_name] = config
    try:
        tuner.inject_adapter(tuner.model, adapter_name)
        tuner.set_restraints(words, adapter_name)
    except BaseException:
        tuner.delete_adapter(adapter_name)
        raise
    _freeze_adapter(tuner.model, adapter_name)


def _warn_of_lost(lost: Sequence[str]) -> None:
    warnings.warn(
        f"adapters: of {', '.join(lost)} only the restrained factors are known, so what acts of each is added as it "
        "is, and σmax of the sum may lie above what one restraint of the raw sum would leave; compose the histories "
        "instead"
    )
