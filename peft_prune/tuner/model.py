"""The tuner: which modules are adapted, how edits are added, what a saved adapter holds."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers, onload_layer
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn

from ..errors import AdapterError, UnsupportedModelError
from ..models.experts import ExpertMap
from ..models.gradients import ensure_gradients
from ..models.mlp import features
from ..models.sharding import fully_sharded, is_sharded, reshard
from ..models.sharing import require_readable
from ..spectral import LowRankUpdate, parse_restraint, restraint_text
from .composition import COMBINATIONS, add_weighted
from .config import PruneEditConfig
from .dequantization import Dequantized, is_quantized
from .experts import PruneEditExpert, close_experts, open_experts
from .files import (
    FACTORS,
    check_base,
    load_factors,
    record_facts,
    renamed,
    require_entries_fit,
    restraint_mark,
    saved_factors,
    without_mark,
    without_other_methods,
)
from .header import name_in_base
from .hotswap import hotswap
from .in_flight import Moment, request
from .layer import PruneEditLayer, PruneEditLinear, all_layers, layers_of
from .mixed_batch import mixed_batch
from .registration import PREFIX
from .state import LayerState
from .targets import default_targets, is_target, require_layers, tied_to


@dataclass(frozen=True)
class EditState:
    """The factors of one adapter at one moment, by layer."""

    adapter_name: str
    layers: dict[str, LayerState]


class AdapterConfigs(dict):
    """Configurations by adapter; a list of adapters is in it where all of them are, and stands for its first.

    ``PeftModel.set_adapter`` and its kin look the active adapter up here, which may be several.
    """

    def __contains__(self, key: object) -> bool:
        if isinstance(key, (list, tuple)):
            return len(key) > 0 and all(super(AdapterConfigs, self).__contains__(name) for name in key)
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key[0] if isinstance(key, (list, tuple)) and key else key)


class PruneEditModel(BaseTuner):
    """Adapts the linear layers that facts are edited in; one adapter holds any number of edits.

    Args:
        model: The base model.
        config: A ``PruneEditConfig``.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Create the factors on the meta device, to be replaced by loaded ones.
    """

    prefix: str = PREFIX
    model: nn.Module
    tuner_layer_cls = PruneEditLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - declared so by PEFT
    peft_config: dict[str, PruneEditConfig]  # type: ignore[assignment] # each tuner has its own configuration
    moment: Moment

    def edited_layers(self, adapter_name: str | None = None) -> Iterator[tuple[str, PruneEditLayer]]:
        """Name (as in the base model) and layer of everything this adapter (the active one if not given) adapts."""
        adapter_name = self.one_adapter(adapter_name)
        reshard(self.model)
        return layers_of(self.model, adapter_name)

    def hold_factors_whole(self) -> None:
        """Take the factors of all adapters that FSDP2 has sharded out of its hands: every process has them whole then.

        They are small, and edits replace them. All processes must call it.
        """
        reshard(self.model)
        for _, layer in all_layers(self.model):
            for name in layer.prune_edit_A:
                layer.hold_factors_whole(name)

    def add_edits(
        self,
        updates: Mapping[str, LowRankUpdate],
        *,
        edits: int = 1,
        on_schedule: bool = True,
        adapter_name: str | None = None,
    ) -> None:
        """Add one edit, or a batch computed together, to the accumulated update.

        Args:
            updates: Update of each module, keyed by the module's name in the base model; B (out, k), A (k, in).
            edits: How many edits the updates hold.
            on_schedule: Restrain afterwards if the schedule says so; off leaves that to `restrain_if_due`.
            adapter_name: The adapter to edit; the active one if not given.

        Raises:
            ValueError: A module is not adapted, a shape does not fit, or a value is not finite. Nothing has changed.
            RuntimeError: An adapter is merged. Nothing has changed.
            AdapterError: An active adapter is scaled. Nothing has changed.
            UnsupportedModelError: Processes hold parts of the weights, and not by FSDP2. Nothing has changed.
        """
        adapter_name = self.one_adapter(adapter_name)
        layers = dict(self.edited_layers(adapter_name))
        unknown = sorted(set(updates) - set(layers))
        if unknown:
            raise ValueError(f"updates: {unknown[0]!r} is not adapted; adapted are {', '.join(layers)}")
        require_readable(self.model)
        for name, update in updates.items():
            _require_shardable(name, layers[name])
            layers[name].check_update(update)
            layers[name].require_unscaled()
        for name, layer in layers.items():
            if name in updates:
                layer.append_update(adapter_name, updates[name], edits, on_schedule=on_schedule)

    def owed(self, adapter_name: str | None = None) -> dict[str, LowRankUpdate]:
        """What the restraint has taken and the next edit puts back, by module; see restrain_on="compensated"."""
        adapter_name = self.one_adapter(adapter_name)
        found = {name: layer.owed(adapter_name) for name, layer in self.edited_layers(adapter_name)}
        return {name: update for name, update in found.items() if update is not None}

    def restrain(self, adapter_name: str | None = None) -> None:
        """Make the effective factors F(raw) in every layer now, whatever the schedule.

        Raises:
            AdapterError: The adapter was loaded already restrained.
        """
        adapter_name = self.one_adapter(adapter_name)
        for _, layer in self.edited_layers(adapter_name):
            layer.apply_restraint(adapter_name)

    def restrain_if_due(self, adapter_name: str | None = None) -> list[str]:
        """Restrain every layer for which the schedule says so; their names."""
        adapter_name = self.one_adapter(adapter_name)
        return [name for name, layer in self.edited_layers(adapter_name) if layer.restrain_if_due(adapter_name)]

    def set_restraints(self, restraints: Mapping[str, str], adapter_name: str | None = None) -> None:
        """Write the restraint of every layer into the configuration; it acts from the next restraint on.

        Args:
            restraints: A word such as ``"log:1.5"``, ``"clip"`` or ``"none"`` for every adapted module, by its name.

        Raises:
            ValueError: A module is missing or unknown, or a word names no restraint.
        """
        adapter_name = self.one_adapter(adapter_name)
        names = [name for name, _ in self.edited_layers(adapter_name)]
        if set(restraints) != set(names):
            raise ValueError(f"restraints: for {', '.join(restraints)}; give one for each of {', '.join(names)}")
        found = {name: parse_restraint(text) for name, text in restraints.items()}
        config = self.peft_config[adapter_name]
        if len(set(found.values())) == 1:
            (one,) = set(found.values())
            config.set_restraint(one)
            config.restraint_pattern = None
        else:
            config.restraint_pattern = {re.escape(name): restraint_text(own) for name, own in found.items()}

    def set_second_moments(self, moments: Mapping[str, Tensor], adapter_name: str | None = None) -> None:
        """Give the second moments of the layers' inputs, by module name, for the output perturbation.

        Raises:
            ValueError: A moment is not as wide as its layer's input.
        """
        for name, layer in self.edited_layers(adapter_name):
            if name in moments:
                layer.set_second_moment(moments[name])

    def restraint_is_pending(self, adapter_name: str | None = None) -> bool:
        """Whether merging or saving this adapter would restrain it first."""
        adapter_name = self.one_adapter(adapter_name)
        return any(layer.restraint_is_pending(adapter_name) for _, layer in self.edited_layers(adapter_name))

    def edit_state(self, adapter_name: str | None = None) -> EditState:
        """A point that ``restore_edit_state`` can come back to; holds references and costs no copies."""
        adapter_name = self.one_adapter(adapter_name)
        return EditState(adapter_name, {n: layer.state(adapter_name) for n, layer in self.edited_layers(adapter_name)})

    def restore_edit_state(self, state: EditState) -> None:
        """Go back to ``state``: the factors, raw and effective, are those of that moment, bit for bit."""
        for name, layer in self.edited_layers(state.adapter_name):
            layer.restore_state(state.adapter_name, state.layers[name])

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter active, or several, whose updates then add up.

        Raises:
            ValueError: There is no such adapter.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(dict.fromkeys(adapter_name))
        for name in names:
            if name not in self.peft_config:
                raise ValueError(f"Adapter {name} not found; there are {', '.join(self.peft_config)}")
        super().set_adapter(adapter_name if isinstance(adapter_name, str) else names, inference_mode=inference_mode)

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        *,
        restraint: str | None = None,
    ) -> None:
        """Add the adapter Σ w ΔW of others, as PEFT's LoRA does; raw updates are added and restrained once.

        Args:
            adapters: Names of adapters.
            weights: One for each; negative ones subtract.
            adapter_name: Name of the new adapter, which is not made active.
            combination_type: "svd" or "cat", both exact, or "linear" for a single adapter.
            svd_rank: With "svd": rank that the sum is truncated to; every direction is kept if not given.
            restraint: A word such as ``"log:1.2"``; needed where the adapters' own restraints differ.

        Raises:
            ValueError: A name, a weight, the combination or the rank is none that is accepted.
            AdapterError: The adapters were made for different bases.
        """
        if combination_type not in COMBINATIONS or (combination_type == "linear" and len(adapters) > 1):
            raise ValueError(
                f"combination_type: {combination_type!r} does not give the sum of the updates; 'svd' and 'cat' do, "
                "and 'linear' for one adapter"
            )
        if svd_rank is not None and combination_type != "svd":
            raise ValueError(f"svd_rank: acts with combination_type='svd' alone, not with {combination_type!r}")
        add_weighted(self, adapters, weights, adapter_name, restraint, svd_rank)

    def set_scale(self, adapter_name: str, scale: float) -> None:
        """Multiply what an adapter does by ``scale``, in every layer; negative takes it off, 1 is as it was edited.

        Raises:
            ValueError: There is no such adapter, or ``scale`` is not finite.
            MergedAdapterError: An adapter is merged.
        """
        for _, layer in self.edited_layers(adapter_name):
            layer.set_scale(adapter_name, scale)

    def hotswap(self, place: str | Path, adapter_name: str | None = None, **hub: Any) -> None:
        """Let a saved adapter take a loaded one's place while requests are under way; those end as they began.

        A request is one call of the PEFT model or of its ``generate``.

        Args:
            place: Folder of the new adapter, or ``user/name[@revision]`` on the Hub; ranks may differ.
            adapter_name: The adapter whose place it takes; the active one if not given.
            hub: ``revision``, ``subfolder``, ``token``, ``cache_dir``.

        Raises:
            AdapterError: It is damaged, for another base, or for layers that the loaded one does not adapt; the
                loaded one stays.
            MergedAdapterError: The loaded one is merged.
        """
        hotswap(self, place, self.one_adapter(adapter_name), **hub)

    def one_adapter(self, adapter_name: str | None) -> str:
        """``adapter_name``, or the active adapter's name if None.

        Raises:
            ValueError: There is no such adapter, or none is given and several are active.
        """
        names = self.active_adapters if adapter_name is None else [adapter_name]
        if len(names) != 1 or names[0] not in self.peft_config:
            raise ValueError(f"adapter_name: {names!r} must name one of {', '.join(self.peft_config)}")
        return names[0]

    def _pre_injection_hook(self, model: nn.Module, config: PruneEditConfig, adapter_name: str) -> None:
        self.peft_config = AdapterConfigs(self.peft_config)
        # the one moment for all adapters: requests that are under way hold it
        self.__dict__.setdefault("moment", Moment())
        require_readable(model)
        reshard(model)
        ensure_gradients(model)

    def _prepare_adapter_config(self, peft_config: PruneEditConfig, model_config: dict) -> PruneEditConfig:
        return peft_config  # the default targets come from the structure of the model, in _prepare_model

    def _prepare_model(self, peft_config: PruneEditConfig, model: nn.Module) -> None:
        if peft_config.target_modules is None:
            layers = peft_config.layers_to_transform
            asked = [layers] if isinstance(layers, int) else layers
            peft_config.target_modules = default_targets(model, asked, peft_config.experts)  # type: ignore[assignment]
        _maybe_include_all_linear_layers(peft_config, model)
        open_experts(model, partial(is_target, peft_config))
        require_layers(peft_config, model)
        self._require_new_name(peft_config, model)
        targets = [key for key, _ in model.named_modules() if self._check_target_module_exists(peft_config, key)]
        check_base(model, peft_config, [name_in_base(key) for key in targets])

    def _require_new_name(self, peft_config: PruneEditConfig, model: nn.Module) -> None:
        name = next(name for name, own in self.peft_config.items() if own is peft_config)
        if any(layer.prune_edit_update[name].edits > 0 for _, layer in layers_of(model, name)):
            raise AdapterError(
                f"adapter {name!r}: the model carries a PRUNE_EDIT adapter of that name, whose edits would be lost; "
                "transformers attaches one that lies beside the weights. Unload it, or give another adapter_name"
            )

    @staticmethod
    def _check_target_module_exists(peft_config: PruneEditConfig, key: str) -> Any:
        return is_target(peft_config, key)

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        for name, layer in all_layers(self.model):
            tied = tied_to(self.model, layer)
            if tied is not None and any(layer.rank(own) > 0 for own in layer.prune_edit_A):
                raise ValueError(
                    f"{name_in_base(name)}: shares its weight with {tied}, so merging would change both; load the base "
                    "with tie_word_embeddings=False, or use the adapter unmerged"
                )

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False, *, requantize: bool = False
    ) -> None:
        """PEFT's, and what each weight took of its update is measured; all layers are merged, or none.

        Args:
            adapter_names: The adapters; the active ones if not given.
            safe_merge: Check for NaN and Inf before anything is written.
            requantize: Quantize merged weights anew where the base is quantized, which may lose edits.

        Raises:
            MergeError: A weight would take less than half of its update, or the base is quantized and ``requantize``
                is off, or its library cannot.
            ValueError: With ``safe_merge``, a merged weight is not finite.
        """
        reshard(self.model)
        held = [(layer, list(layer.merged_adapters)) for _, layer in all_layers(self.model)]
        for layer, _ in held:
            _require_shardable(layer.name_in_base, layer)
        with self._requantizing(requantize):
            try:
                super().merge_adapter(adapter_names, safe_merge)
            except Exception:
                for layer, names in held:
                    if layer.merged_adapters != names:
                        with onload_layer(layer):
                            layer.unmerge()
                            if names:
                                layer.merge(adapter_names=names)
                raise

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        *,
        requantize: bool = False,
    ) -> nn.Module:
        """PEFT's, and what each weight takes of its update is measured before anything is unloaded.

        A quantized base is dequantized first, whole, so that the result is a plain model; merging into the
        full-precision base that it was made of is more exact.

        Args:
            progressbar: Show one.
            safe_merge: Check for NaN and Inf before anything is written.
            adapter_names: The adapters; the active ones if not given.
            requantize: Leave a quantized base quantized, and quantize the merged weights anew, which may lose edits.

        Raises:
            MergeError: A weight would take less than half of its update, or the base cannot be dequantized or
                quantized anew. The model is as it was.
            ValueError: With ``safe_merge``, a merged weight is not finite.
        """
        self._check_merge_allowed()
        reshard(self.model)
        for _, layer in all_layers(self.model):
            _require_shardable(layer.name_in_base, layer)
        if not requantize and is_quantized(self.model):
            dequantized = Dequantized(self.model)
            try:
                return self.merge_and_unload(progressbar, safe_merge, adapter_names, requantize=True)
            except Exception:
                dequantized.undo()
                raise
        with self._requantizing(requantize):
            self._try_merge(safe_merge, adapter_names)
            return super().merge_and_unload(progressbar, safe_merge, adapter_names)

    def unmerge_adapter(self) -> None:
        """PEFT's: the base is as it was before the merge, bit for bit."""
        reshard(self.model)
        super().unmerge_adapter()

    def disable_adapter_layers(self) -> None:
        """PEFT's; of a merged base that FSDP2 shards, the merge is undone at once and not within a forward pass."""
        if any(True for _ in fully_sharded(self.model)):
            reshard(self.model)
            for _, layer in all_layers(self.model):
                if layer.merged:
                    layer.unmerge()
        super().disable_adapter_layers()

    @contextmanager
    def _requantizing(self, requantize: bool) -> Iterator[None]:
        layers = [layer for _, layer in all_layers(self.model)]
        for layer in layers:
            layer.requantizes = requantize
        try:
            yield
        finally:
            for layer in layers:
                layer.requantizes = False

    def _try_merge(self, safe_merge: bool, adapter_names: list[str] | None) -> None:
        """Merge one layer after the other and take it back, for what would be an error in the midst of unloading."""
        for _, layer in all_layers(self.model):
            if not layer.merged:
                with onload_layer(layer):
                    layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
                    if layer.merged:
                        layer.unmerge()

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            # PEFT takes a layer's innermost module, so other methods beneath ours would be left out
            for _, layer in all_layers(self.model):
                inner: Any = layer.base_layer
                while hasattr(inner, "base_layer"):
                    with onload_layer(inner):
                        inner.merge(safe_merge=kwargs.get("safe_merge", False))
                    inner = inner.base_layer
        if isinstance(self.model, PeftModel):
            self.model = self.model.get_base_model()  # PEFT cannot unload through another PeftModel
        plain: Any = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        close_experts(plain)
        return plain

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        with ExitStack() as stack:
            if not torch.compiler.is_compiling():
                stack.enter_context(request(self.moment))
            names = kwargs.get("adapter_names")
            if names is not None:
                beams = kwargs.get("num_beams") or 1
                stack.enter_context(mixed_batch(self.model, names, self.peft_config, beams))
            yield

    def _create_and_replace(
        self,
        peft_config: PruneEditConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        rank = peft_config.rank_of(name_in_base(current_key))
        if isinstance(target, PruneEditLayer):
            target.update_layer(adapter_name, rank, config=peft_config)
            return
        kwargs = get_quantization_kwargs(self)
        kwargs["name_in_base"] = name_in_base(current_key)
        new_module = self._create_new_module(peft_config, adapter_name, target, r=rank, **kwargs)
        if adapter_name not in self.active_adapters:
            new_module.requires_grad_(False)
        self._replace_module(parent, target_name, new_module, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's method moves the factors to where the base weight is; over an offloaded base that is the meta device.
        # The layer has put them where the base computes.
        setattr(parent, child_name, new_module)

    @staticmethod
    def _create_new_module(
        config: PruneEditConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> PruneEditLinear:
        if features(target) is None:
            raise UnsupportedModelError(
                f"Target module {target} is not supported: only torch.nn.Linear, transformers.pytorch_utils.Conv1D "
                "and quantized linear layers can be edited."
            )
        kind = PruneEditExpert if isinstance(target, ExpertMap) else PruneEditLinear
        return kind(target, adapter_name, config=config, **kwargs)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for _, layer in layers_of(self.model, adapter_name):
                layer.cast_to_base_dtype(adapter_name)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PruneEditConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        entries = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        entries = without_other_methods(model, entries)
        entries.update(saved_factors(layers_of(model, adapter_name), adapter_name, entries))
        record_facts(config, layers_of(model, adapter_name), adapter_name)
        if any(layer.scaling[adapter_name] != 1 for _, layer in layers_of(model, adapter_name)):
            warnings.warn(f"adapter {adapter_name!r}: its scale is not saved; the file holds its factors at scale 1")
        entries.update(restraint_mark(layers_of(model, adapter_name), adapter_name, entries))
        return entries

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT calls this for saving and for loading, so a compiled base and a plain one share files
        return super()._remove_adapter_name_from_key(key, adapter_name).replace("_orig_mod.", "")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PruneEditConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        load_factors(layers_of(model, adapter_name), config, adapter_name, state_dict)
        state_dict = without_mark(state_dict)
        own_keys = [
            cls._remove_adapter_name_from_key(f"{name}.{factor}.{adapter_name}.weight", adapter_name)
            for name, _ in layers_of(model, adapter_name)
            for factor in FACTORS
        ]
        state_dict = renamed(own_keys, state_dict)
        entries = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        require_entries_fit(model, entries)
        return entries


def _require_shardable(name: str, layer: PruneEditLayer) -> None:
    """Raise UnsupportedModelError where FSDP2 shards what it was not known to shard when the adapter was attached."""
    base: Any = layer.get_base_layer()
    if isinstance(base, ExpertMap) and is_sharded(base.experts.down_proj):
        what = "the experts' fused parameter is"
    elif layer.quantization_backend is not None and is_sharded(getattr(base, "weight", None)):
        what = "its quantized weight is"
    else:
        return
    raise UnsupportedModelError(
        f"{name}: {what} split over processes by fully_shard; it shards plain linear layers of a model that is edited"
    )
