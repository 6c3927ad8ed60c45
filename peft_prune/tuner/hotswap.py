"""Another saved adapter in the place of a loaded one, while requests are under way."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import AdapterError, MergedAdapterError
from ..publishing import publisher
from ..spectral import LowRankUpdate
from .config import PruneEditConfig
from .files import check_base, loaded_state, says_restrained, updates_in
from .header import name_in_base
from .in_flight import Moment
from .layer import PruneEditLayer, layers_of

_ONE_AT_A_TIME = threading.Lock()


def read_adapter(place: str | Path, **hub: Any) -> tuple[PruneEditConfig, dict[str, Tensor]]:
    """The configuration and the entries of a saved adapter.

    Args:
        place: A folder, or ``user/name[@revision]`` on the Hub.
        hub: ``revision``, ``subfolder``, ``token``, ``cache_dir``.

    Raises:
        AdapterError: There is no PRUNE_EDIT adapter, or it is damaged.
        HubError: The repository cannot be fetched.
    """
    place = str(place)
    if not Path(place).exists():
        place, hub = _on_the_hub(place, hub)
    try:
        config = PruneEditConfig.from_pretrained(place, **hub)
        if not isinstance(config, PruneEditConfig):
            raise AdapterError(f"adapter: {place} is of type {config.peft_type.value}, PRUNE_EDIT is accepted")
        own = Path(place, hub.get("subfolder") or "", SAFETENSORS_WEIGHTS_NAME)
        if Path(place).is_dir() and not own.is_file():
            raise AdapterError(f"adapter: {place} holds no {own.name}")
        return config, load_file(own if own.is_file() else hf_hub_download(place, SAFETENSORS_WEIGHTS_NAME, **hub))
    except AdapterError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AdapterError(f"adapter: {place} cannot be loaded: {reason}") from None


def _on_the_hub(place: str, hub: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where PEFT finds ``user/name[@revision]``: in the cache, checked; with options of the Hub's, by itself."""
    if not hub:
        return str(publisher("adapter_folder")(place)), hub
    name, _, revision = place.partition("@")
    if revision and hub.get("revision") is not None:
        raise AdapterError(f"adapter: {place} names a revision, and revision is {hub['revision']!r}; give one of them")
    return name, {**hub, "revision": revision} if revision else hub


def hotswap(tuner: Any, place: str | Path, adapter_name: str, **hub: Any) -> None:
    """Let a saved adapter take the place of a loaded one, for every request that begins afterwards.

    Everything is read and checked before anything changes. A request that is under way, a whole ``generate`` for
    instance, goes on with the factors that it began with.

    Args:
        tuner: The `PruneEditModel`.
        place: Folder of the new adapter, or ``user/name[@revision]`` on the Hub; its ranks may differ.
        adapter_name: The adapter whose place it takes.
        hub: As for `read_adapter`.

    Raises:
        AdapterError: It is damaged, was made for another base, or adapts a layer that the loaded one does not. The
            loaded one stays.
        MergedAdapterError: The loaded one is merged.
    """
    config, entries = read_adapter(place, **hub)
    layers = {name_in_base(name): layer for name, layer in layers_of(tuner.model, adapter_name)}
    _require_unmerged(layers, adapter_name)
    updates = _fitting(updates_in(entries), layers, adapter_name)
    config.strict_base = True
    check_base(tuner.model, config, layers)
    config.strict_base = False
    config.inference_mode = tuner.peft_config[adapter_name].inference_mode
    restrained = says_restrained(config, entries)
    states = {name: loaded_state(config, update, restrained) for name, update in updates.items()}
    with _ONE_AT_A_TIME:
        _require_unmerged(layers, adapter_name)
        for name, layer in layers.items():
            layer.swap(adapter_name, updates[name], states[name], tuner.moment)
            layer.prune_edit_config[adapter_name] = config
        tuner.peft_config[adapter_name] = config
        # until here requests begin in the old moment, in which the old factors act
        tuner.moment = Moment()


def _require_unmerged(layers: dict[str, PruneEditLayer], adapter_name: str) -> None:
    for name, layer in layers.items():
        if layer.merged:
            raise MergedAdapterError(
                f"adapter {adapter_name!r}: {layer.merged_adapters} are merged into {name}; call unmerge_adapter() "
                "before swapping"
            )


def _fitting(
    updates: dict[str, LowRankUpdate], layers: dict[str, PruneEditLayer], adapter_name: str
) -> dict[str, LowRankUpdate]:
    """One update for every layer, of rank 0 where the new adapter does not adapt it."""
    if not updates:
        raise AdapterError("adapter: it holds no factors")
    for name, update in updates.items():
        if name not in layers:
            raise AdapterError(
                f"{name}: the new adapter adapts it, {adapter_name!r} does not; load it under a name of its own"
            )
        shape = (layers[name].out_features, layers[name].in_features)
        if update.shape != shape:
            raise AdapterError(f"{name}: the new adapter's update is {update.shape}, this base needs {shape}")
    return {
        name: updates.get(name, LowRankUpdate.zeros(layer.out_features, layer.in_features))
        for name, layer in layers.items()
    }
