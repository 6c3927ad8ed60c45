"""What one adapted linear layer does: factors, restraint, merge, forward."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Optional, cast

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import align_module_device
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr
from peft.utils.other import transpose
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import AdapterError, MergedAdapterError, MergeError, NonFiniteUpdateError
from ..models.experts import ExpertMap
from ..models.mlp import features
from ..models.quantization import form_of
from ..models.sharding import is_sharded, whole, write_shard
from ..spectral import (
    ConditionNumber,
    DirectionalRestraint,
    DirectionFilter,
    GrownGram,
    LowRankUpdate,
    OutputPerturbation,
    Restraint,
    accumulated,
    is_dense_form,
    reorthogonalize,
    restrain_by_gram,
    restrain_with_change,
    sigma_max,
    truncate,
)
from .config import STEPWISE, PruneEditConfig
from .figures import LayerFigures
from .in_flight import Acting, Earlier, Moment
from .quantization import backend_of
from .realised import MIN_SHARE, Realised, realised
from .snapshot import BaseLayerSnapshot, bits_of
from .state import AccumulatedUpdate, Around, LayerState, checksum, trained_pending


class PruneEditLayer(BaseTunerLayer):
    """The adapters of one base layer: effective factors as modules, raw factors beside them."""

    adapter_layer_names = ("prune_edit_A", "prune_edit_B")
    other_param_names = ("prune_edit_config", "prune_edit_update", "prune_edit_figures", "scaling")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.name_in_base: str = kwargs.get("name_in_base", "")
        self.quantization_backend = backend_of(
            self.get_base_layer(),
            self.name_in_base,
            get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass"),
        )
        self.requantizes, self.min_share = False, MIN_SHARE
        self.realised: dict[str, Realised] = {}
        self.prune_edit_A = nn.ModuleDict({})
        self.prune_edit_B = nn.ModuleDict({})
        self.prune_edit_config: dict[str, PruneEditConfig] = {}
        self.prune_edit_update: dict[str, AccumulatedUpdate] = {}
        self.prune_edit_figures: dict[str, LayerFigures] = {}
        self.scaling: dict[str, float] = {}
        self._earlier: Earlier | None = None
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self._unmerged_base: Any = None
        self._merged_bits: tuple[torch.dtype, int] | None = None
        self._sigma_max_base: float | None = None
        self._filtering: tuple[DirectionalRestraint, DirectionFilter] | None = None
        self._condition: ConditionNumber | None = None
        self._told_of_singular_base = False
        self._second_moment: Tensor | None = None
        self._output: OutputPerturbation | None = None
        base = self.get_base_layer()
        # PEFT's own rule for what is stored as (in, out)
        self.fan_in_fan_out = isinstance(base, Conv1D)
        # what compressed-tensors has packed has no weight, which PEFT looks at; an expert's map is none of its types
        known = hasattr(base, "weight") and not isinstance(base, ExpertMap)
        in_features, out_features = _get_in_out_features(base) if known else features(base) or (0, 0)
        if in_features is None or out_features is None:
            raise TypeError(f"Unsupported layer type {type(base)}; linear layers are accepted")
        self.in_features: int = in_features
        self.out_features: int = out_features

    def update_layer(
        self, adapter_name: str, r: int, config: PruneEditConfig, inference_mode: bool = False, **kwargs: Any
    ) -> None:
        """Add an adapter of rank ``r``, or replace the one of that name.

        Raises:
            ValueError: The rank is larger than the layer.
        """
        limit = max(self.out_features, self.in_features)
        if r > limit and not config.ranks_are_of_a_file:
            raise ValueError(
                f"r: {r} is above {limit}, the larger side of a layer of shape {(self.out_features, self.in_features)}"
            )
        self.prune_edit_config[adapter_name] = config
        # a restrained file must not be restrained again: F(F(s)) differs from F(s)
        self.prune_edit_update[adapter_name] = AccumulatedUpdate(
            raw_lost=config.restrained or config.consolidated > 0, edits=config.edits, consolidated=config.consolidated
        )
        self.prune_edit_figures.pop(adapter_name, None)
        down, up = torch.zeros(r, self.in_features), torch.zeros(self.out_features, r)
        if r > 0:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            if not config.init_weights:
                # small enough that no restraint acts on it for a base of ordinary scale
                nn.init.normal_(up, std=0.1 / math.sqrt(r))
        self.prune_edit_A[adapter_name] = _factor(down)
        self.prune_edit_B[adapter_name] = _factor(up)
        self.scaling[adapter_name] = 1.0
        if r > 0 and not config.restrained and not config.consolidated:
            self.prune_edit_update[adapter_name].pending = trained_pending(config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def rank(self, adapter_name: str) -> int:
        """Rank of the effective factors of this adapter."""
        return self.factors(adapter_name)[0].weight.shape[0]

    def factors(self, adapter_name: str) -> tuple[nn.Linear, nn.Linear]:
        """A and B as the modules that forward runs through and that training changes."""
        return cast(nn.Linear, self.prune_edit_A[adapter_name]), cast(nn.Linear, self.prune_edit_B[adapter_name])

    def effective_update(self, adapter_name: str) -> LowRankUpdate:
        """The update that forward applies at scale 1: B (out, r) and A (r, in), detached."""
        return LowRankUpdate(
            B=self._factor_weight("prune_edit_B", adapter_name), A=self._factor_weight("prune_edit_A", adapter_name)
        )

    def raw_update(self, adapter_name: str) -> LowRankUpdate:
        """The accumulated update before any restraint: B (out, r') and A (r', in).

        Raises:
            AdapterError: The factors were loaded already restrained.
        """
        update = self._current_update(adapter_name)
        if update.raw_lost:
            raise AdapterError(
                f"adapter {adapter_name!r}: its factors were loaded already restrained, the raw ones are not in the "
                "file; resume from the history of edits instead"
            )
        return self._raw(adapter_name)

    def raw_is_lost(self, adapter_name: str) -> bool:
        """Whether what acts was restrained and only the history knows the raw factors."""
        state = self._current_update(adapter_name)
        compounded = self.prune_edit_config[adapter_name].restrain_on == "compounding"
        return self.rank(adapter_name) > 0 and (state.raw_lost or (compounded and self.is_restrained(adapter_name)))

    def append_update(
        self, adapter_name: str, update: LowRankUpdate, edits: int = 1, *, on_schedule: bool = True
    ) -> None:
        """Add an update to the raw and the effective factors, then restrain if the schedule says so.

        Args:
            update: B (out, k) and A (k, in); k may be 0, for a batch of edits that leaves this layer alone.
            edits: How many edits the update holds.
            on_schedule: Look at the schedule afterwards; off leaves that to `restrain_if_due`.

        Raises:
            ValueError: The shape is not this layer's, or a value is not finite.
            MergedAdapterError: An adapter is merged into this layer.
        """
        self.check_update(update)
        state = self._current_update(adapter_name)
        if state.raw_lost:
            warnings.warn(
                f"adapter {adapter_name!r} was loaded already restrained; the next restraint acts on the sum of its "
                "factors and the new edits. Resume from the history of edits to restrain the raw sum."
            )
        acting = self._acting(adapter_name)
        update = update.to(device=acting.device, dtype=acting.dtype)
        if self._is_narrow(adapter_name):
            update = update.balanced()
        added = update if state.owed is None else state.owed.to(device=acting.device, dtype=acting.dtype).append(update)
        summed = accumulated(acting, added)
        self._set_effective(adapter_name, summed)
        if self._compensates(adapter_name):
            state.fresh, state.owed = added if state.fresh is None else accumulated(state.fresh, added), None
        state.raw_lost = False
        state.raw = None if state.raw is None else state.raw.to(device=acting.device, dtype=acting.dtype)
        state.add(update)
        state.edits += edits
        state.pending += edits
        if on_schedule:
            self.restrain_if_due(adapter_name)

    def restrain_if_due(self, adapter_name: str) -> bool:
        """Apply the restraint if the schedule says so; whether it did."""
        due = self._restraint_is_due(adapter_name)
        if due:
            self.apply_restraint(adapter_name)
        return due

    def check_update(self, update: LowRankUpdate) -> None:
        """Raise what ``append_update`` would raise, and change nothing."""
        self._require_unmerged("editing")
        if tuple(update.shape) != (self.out_features, self.in_features):
            raise ValueError(
                f"update: shape {tuple(update.shape)} does not fit this layer, "
                f"{(self.out_features, self.in_features)} is accepted"
            )
        if not _is_finite(update):
            raise NonFiniteUpdateError("update: its factors hold NaN or Inf; finite values are accepted")

    def _require_unmerged(self, purpose: str) -> None:
        if self.merged:
            raise MergedAdapterError(
                f"adapters {self.merged_adapters} are merged into {self.name_in_base}; call unmerge_adapter() before "
                f"{purpose}"
            )

    def require_unscaled(self) -> None:
        """Raise AdapterError where an active adapter is scaled: an edit is computed for the model as it acts."""
        for name in self.active_adapters:
            if self.scaling.get(name, 1.0) != 1:
                raise AdapterError(
                    f"adapter {name!r}: its scale in {self.name_in_base} is {self.scaling[name]}, and edits hold at "
                    "scale 1 only; call unscale_layer() before editing"
                )

    def restraint(self, adapter_name: str) -> Restraint:
        """The restraint that the configuration names for this layer."""
        return self.prune_edit_config[adapter_name].restraint_of(self.name_in_base)

    def set_raw_update(self, adapter_name: str, update: LowRankUpdate, edits: int) -> None:
        """Replace the accumulated update, as undoing an edit does; the restraint is pending afterwards.

        Raises:
            AdapterError: The factors hold training, which would be lost.
        """
        self.check_update(update)
        self.require_untrained(adapter_name)
        fresh = update if self._compensates(adapter_name) and update.rank else None
        self.prune_edit_update[adapter_name] = AccumulatedUpdate(edits=edits, pending=edits, fresh=fresh)
        self._set_effective(adapter_name, update)

    def set_restrained_update(self, adapter_name: str, update: LowRankUpdate, edits: int) -> None:
        """Replace the accumulated update by factors whose raw ones are not known: no restraint acts on them again."""
        self.set_raw_update(adapter_name, update, edits)
        state = self.prune_edit_update[adapter_name]
        state.pending, state.raw_lost, state.watched = 0, True, True

    def swap(self, adapter_name: str, new: LowRankUpdate, state: AccumulatedUpdate, moment: Moment) -> None:
        """Let other factors take the place of this adapter's; requests of ``moment`` go on with those it had."""
        self._earlier = self._earlier or Earlier()
        self._earlier.keep(moment, adapter_name, self._acting_now(adapter_name))
        self.prune_edit_update[adapter_name] = state
        self.prune_edit_figures.pop(adapter_name, None)
        for factors, value in ((self.prune_edit_A, new.A), (self.prune_edit_B, new.B)):
            old = cast(nn.Linear, factors[adapter_name]).weight
            # a parameter of its own: the old one still acts
            value = value.to(device=old.device, dtype=old.dtype).clone().contiguous()
            factors[adapter_name] = _factor(value, requires_grad=old.requires_grad)

    def _acting_now(self, adapter_name: str) -> Acting:
        return (*self.factors(adapter_name), self.scaling[adapter_name])

    def require_untrained(self, adapter_name: str) -> None:
        """Raise AdapterError where the factors were trained after an edit or a restraint: no history knows of that."""
        if self._current_update(adapter_name).trained:
            raise AdapterError(
                f"adapter {adapter_name!r}: the factors of {self.name_in_base} were trained after their last edit or "
                "restraint; building them anew from the edits would lose the training. Save the adapter first and go "
                "on with a fresh one"
            )

    def state(self, adapter_name: str) -> LayerState:
        """What ``restore_state`` needs to come back here; references, no copies, since edits write new tensors."""
        state, effective = self._current_update(adapter_name), self.effective_update(adapter_name)
        return LayerState(effective, replace(state), state.checksum or checksum(effective))

    def restore_state(self, adapter_name: str, state: LayerState) -> None:
        """Go back to an earlier ``state`` of this layer.

        Raises:
            AdapterError: The factors of that moment were trained in place and are no more.
            MergedAdapterError: An adapter is merged into this layer.
        """
        self._require_unmerged("going back to an earlier state")
        if checksum(state.effective) != state.checksum:
            raise AdapterError(
                f"adapter {adapter_name!r}: the factors of {self.name_in_base} were trained in place, so the state "
                "before that cannot be restored"
            )
        self.prune_edit_update[adapter_name] = replace(state.update)
        self._write(adapter_name, state.effective)

    def set_rank(self, adapter_name: str, rank: int) -> None:
        """Make room for factors of this rank, which are about to be loaded."""
        shapes = ((rank, self.in_features), (self.out_features, rank))
        modules = (self.prune_edit_A, self.prune_edit_B)
        for factors, factor, shape in zip(modules, self.factors(adapter_name), shapes, strict=True):
            old = factor.weight
            if old.shape != shape:
                value = torch.zeros(shape, dtype=old.dtype, device=old.device)
                factors[adapter_name] = _factor(value, requires_grad=old.requires_grad)

    def take_basis(self, adapter_name: str, update: LowRankUpdate) -> None:
        """Make room for the same effective update in other factors, which are about to be loaded; the raw ones stay."""
        state = self._current_update(adapter_name)
        self.set_rank(adapter_name, update.rank)
        if state.checksum is not None:
            state.checksum = checksum(update)

    def cast_to_base_dtype(self, adapter_name: str) -> None:
        """Give up float32 factors for the base's floating-point dtype, where it has one."""
        dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())[1]
        if dtype is not None and dtype.is_floating_point:
            self.prune_edit_A[adapter_name].to(dtype)
            self.prune_edit_B[adapter_name].to(dtype)

    def restraint_is_pending(self, adapter_name: str) -> bool:
        """Whether the factors hold something that the restraint (or ``max_rank``) has not seen."""
        config, state = self.prune_edit_config[adapter_name], self._current_update(adapter_name)
        too_wide = config.max_rank is not None and self.rank(adapter_name) > config.max_rank
        return self.rank(adapter_name) > 0 and (too_wide or (self._restrains(adapter_name) and state.pending > 0))

    def is_restrained(self, adapter_name: str) -> bool:
        """Whether the effective factors are F(raw) and not the raw sum."""
        state = self._current_update(adapter_name)
        if state.raw_lost:
            return True
        return self._restrains(adapter_name) and state.pending == 0 and (state.edits > 0 or state.raw is not None)

    def apply_restraint(self, adapter_name: str) -> None:
        """Make the effective factors F(raw), then truncate them to ``max_rank``.

        Raises:
            AdapterError: The factors were loaded already restrained.
            MergedAdapterError: This adapter is merged.
            TypeError: The base weight is quantized by a library that cannot give it back.
        """
        if adapter_name in self.merged_adapters:
            raise MergedAdapterError(
                f"adapter {adapter_name!r} is merged into {self.name_in_base}; unmerge it before a restraint"
            )
        raw = self.raw_update(adapter_name)
        state = self.prune_edit_update[adapter_name]
        if self._compensates(adapter_name):
            effective, owed = self._compensated(adapter_name)
            self._set_effective(adapter_name, effective)
            state.raw, state.change, state.gram, state.watched = raw, None, None, True
            state.pending, state.fresh, state.owed, state.consolidated = 0, None, owed, 0
            return
        effective, gram, change = self._restrained(adapter_name, raw, state.gram)
        self._set_effective(adapter_name, effective)
        state.pending, state.gram, state.change, state.watched = 0, gram, change, True
        state.consolidated = 0
        if effective is not raw:
            compounds = self.prune_edit_config[adapter_name].restrain_on == "compounding"
            state.raw = raw
            if compounds:
                state.forget()

    def set_consolidated(self, adapter_name: str, update: LowRankUpdate) -> None:
        """Let trained factors act in the place of F(raw); the raw ones stay, and nothing is pending.

        Raises:
            AdapterError: The raw factors are not known, or would not be afterwards.
            MergedAdapterError: An adapter is merged.
            NonFiniteUpdateError: A factor is not finite.
        """
        self.check_update(update)
        schedule = self.prune_edit_config[adapter_name].restrain_on
        if schedule in STEPWISE:
            raise AdapterError(
                f"adapter {adapter_name!r}: under restrain_on={schedule!r} what acts is not F of the raw factors, so "
                "nothing can be consolidated; every, merge and threshold are accepted"
            )
        raw = self.raw_update(adapter_name)
        self._set_effective(adapter_name, update.to(device=raw.device, dtype=raw.dtype))
        state = self.prune_edit_update[adapter_name]
        state.raw, state.change, state.watched = raw, None, True
        state.pending, state.consolidated = 0, state.edits

    def consolidated_edits(self, adapter_name: str) -> int:
        """How many edits were consolidated in the effective factors; 0 where these are F(raw) or were trained since."""
        return self._current_update(adapter_name).consolidated

    def _restrained(
        self, adapter_name: str, raw: LowRankUpdate, gram: GrownGram | None, *, limit_rank: bool = True
    ) -> tuple[LowRankUpdate, GrownGram | None, LowRankUpdate | None]:
        """F of this update, truncated to ``max_rank``, with the Gram matrix of ``raw`` and what F took away."""
        config = self.prune_edit_config[adapter_name]
        effective, change = raw, None
        if self._restrains(adapter_name) and raw.rank > 0:
            restraint, m = self.restraint(adapter_name), self.sigma_max_base()
            if isinstance(restraint, DirectionalRestraint):
                effective = self._filter(restraint).applied(raw)
            elif raw.rank > self._small_rank:
                gram = GrownGram.of(raw) if gram is None else gram.at(raw)
                effective, change = restrain_by_gram(raw, restraint, m, gram)
            else:
                effective, change = restrain_with_change(raw, restraint, m)
        if limit_rank and config.max_rank is not None and effective.rank > config.max_rank:
            effective, change = truncate(effective, rank=config.max_rank)[0], None
        return effective, gram, change

    def owed(self, adapter_name: str) -> LowRankUpdate | None:
        """What the last restraint took and the next edit puts back, under restrain_on="compensated"; None for none."""
        return self._current_update(adapter_name).owed

    def _compensates(self, adapter_name: str) -> bool:
        return self.prune_edit_config[adapter_name].restrain_on == "compensated"

    def _compensated(self, adapter_name: str) -> tuple[LowRankUpdate, LowRankUpdate | None]:
        """The effective update with F of what is fresh in the place of that, and what F took of it.

        Wang et al. 2026 (arXiv 2605.26670): each update is restrained by itself, and what that takes is put back into
        the next one.
        """
        state, acting = self.prune_edit_update[adapter_name], self._acting(adapter_name)
        fresh = state.fresh
        if fresh is None and state.raw is None and state.pending > 0:
            fresh = acting  # loaded factors, which no restraint has seen
        if fresh is None or fresh.rank == 0:
            return acting, state.owed
        restrained, _, change = self._restrained(adapter_name, fresh, None, limit_rank=False)
        if restrained is fresh:
            effective, owed = acting, None
        else:
            change = reorthogonalize(restrained.append(fresh.scaled(-1.0))).update() if change is None else change
            effective, owed = accumulated(acting, change.to(dtype=acting.dtype)), change.scaled(-1.0)
        limit = self.prune_edit_config[adapter_name].max_rank
        if limit is not None and effective.rank > limit:
            effective = truncate(effective, rank=limit)[0]
        return effective, owed

    def _filter(self, restraint: DirectionalRestraint) -> DirectionFilter:
        """What a restraint takes out of every update of this layer; found once for the restraint in use."""
        if self._filtering is None or self._filtering[0] != restraint:
            with self.base_weight() as weight:
                self._filtering = (restraint, restraint.filter(weight))
        return self._filtering[1]

    def apply_pending_restraint(self, adapter_name: str) -> bool:
        """Apply the restraint if it is pending, for every road out of the adapter; whether it was."""
        if not self.restraint_is_pending(adapter_name):
            return False
        # what training does to loaded factors cannot be told apart from them: restrain the sum
        self.prune_edit_update[adapter_name].raw_lost = False
        self.apply_restraint(adapter_name)
        return True

    def sigma_max_base(self) -> float:
        """Largest singular value of the base weight; computed once."""
        if self._sigma_max_base is None:
            with self.base_weight() as weight:
                self._sigma_max_base = sigma_max(weight)
        return self._sigma_max_base

    def condition(self) -> ConditionNumber:
        """Condition numbers of W0 and of W0 + ΔW; sets up a (n, n) float64 factor once, n the smaller side."""
        if self._condition is None:
            with self.base_weight() as weight:
                self._condition = ConditionNumber(weight)
        return self._condition

    def figures(self, adapter_name: str) -> LayerFigures:
        """Figures of the effective update as it is now; those that were taken before are not computed again."""
        if adapter_name not in self.prune_edit_figures:
            self.prune_edit_figures[adapter_name] = LayerFigures(self.condition())
        effective = self.effective_update(adapter_name)
        key = self._current_update(adapter_name).checksum or checksum(effective)
        return self.prune_edit_figures[adapter_name].of(effective, key, self._around(adapter_name))

    def known_base(self) -> tuple[float | None, ConditionNumber | None]:
        """σmax(W₀) and the factors of W₀, as far as something has computed them already."""
        return self._sigma_max_base, self._condition

    def _around(self, adapter_name: str) -> tuple[Around, LowRankUpdate] | None:
        """An earlier raw sum, and what the effective update has more than that; None where its rank is small."""
        state = self.prune_edit_update[adapter_name]
        if self.rank(adapter_name) <= self._small_rank or self._is_narrow(adapter_name):
            return None
        if state.raw is not None and state.change is None:
            return None
        if state.reference is None or state.since is None or state.since.rank > self._small_rank:
            raw, old = self._raw(adapter_name), state.reference
            state.reference = Around(raw) if old is None else Around(raw, old.mark, state.since)
            state.since = LowRankUpdate.zeros(*raw.shape, dtype=raw.dtype, device=raw.device)
        if state.raw is None or state.change is None:
            return state.reference, state.since
        change = state.change.to(dtype=state.since.dtype)
        # products are kept for leading columns: of a wide change from edit to edit, of edits beside a narrow one from
        # restraint to restraint
        wide = change.rank > 8
        return state.reference, change.append(state.since) if wide else state.since.append(change)

    @property
    def _small_rank(self) -> int:
        """Up to here restraint and figures work on the factors alone, beyond on the shorter side of the layer."""
        return max(min(self.out_features, self.in_features) // 8, 16)

    def set_second_moment(self, moment: Tensor | None) -> None:
        """Give the second moment C = E[k kᵀ] of ordinary inputs, (in, in), for the output perturbation.

        Raises:
            ValueError: C is not as wide as the layer's input.
        """
        if moment is not None and tuple(moment.shape) != (self.in_features, self.in_features):
            raise ValueError(
                f"moment: shape {tuple(moment.shape)} must be {(self.in_features,) * 2} for {self.name_in_base}"
            )
        if moment is not self._second_moment:
            self._second_moment, self._output = moment, None
            self.prune_edit_figures.clear()

    def output_perturbation(self, adapter_name: str) -> float | None:
        """tr(ΔW C ΔWᵀ) / tr(W₀ C W₀ᵀ) of the effective update; None where no second moment C was given."""
        if self._second_moment is None:
            return None
        if self._output is None:
            with self.base_weight() as weight:
                self._output = OutputPerturbation(weight, self._second_moment)
        return self.figures(adapter_name).output_perturbation(self._output)

    @contextmanager
    def base_weight(self) -> Iterator[Tensor]:
        """The base weight as it was before any merge, (out, in), dequantized and brought in where it is offloaded."""
        base = self.get_base_layer()
        remembered = self._unmerged_base.sharded_weight() if self._unmerged_base is not None else None
        if remembered is not None:  # what is merged may be gathered for a forward pass, and is left alone
            yield transpose(remembered, self.fan_in_fan_out)
            return
        with align_module_device(base):
            merged = None
            if self._unmerged_base is not None:
                merged = self._snapshot()
                self._unmerged_base.restore(base)
            try:
                yield transpose(self.get_base_weight(), self.fan_in_fan_out)
            finally:
                if merged is not None:
                    merged.restore(base)

    def _snapshot(self) -> Any:
        """What gives the base layer back as it is now."""
        return BaseLayerSnapshot(self.get_base_layer())

    def leaving_update(self, adapter_name: str) -> LowRankUpdate:
        """The effective update as it leaves, at scale 1: under a pending restraint, which stays pending."""
        effective = self.effective_update(adapter_name)
        if not self.restraint_is_pending(adapter_name):
            return effective
        if self._compensates(adapter_name):
            return self._compensated(adapter_name)[0].to(effective.dtype)
        gram = self.prune_edit_update[adapter_name].gram
        return self._restrained(adapter_name, self._raw(adapter_name), gram)[0].to(effective.dtype)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW in the base layer's own orientation, as it leaves, times the adapter's scale."""
        delta = transpose(self.leaving_update(adapter_name).dense(), self.fan_in_fan_out)
        scale = self.scaling[adapter_name]
        return delta if scale == 1 else delta * scale

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def set_scale(self, adapter: str, scale: float) -> None:
        """Multiply what this adapter does by ``scale``, which may be negative; 1 is the adapter as it was edited.

        Raises:
            ValueError: ``scale`` is NaN or Inf.
            MergedAdapterError: An adapter is merged into this layer.
        """
        if adapter not in self.scaling:
            return  # as in PEFT's LoRA, which asks every layer
        if not math.isfinite(scale):
            raise ValueError(f"scale: {scale} must be finite")
        if scale != self.scaling[adapter]:
            self._require_unmerged("scaling")
            self.scaling[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the scale of every active adapter by ``scale``."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.set_scale(name, self.scaling[name] * scale)

    def unscale_layer(self, scale: Optional[float] = None) -> None:
        """Divide the scale of every active adapter by ``scale``; without one set it back to 1.

        Raises:
            ValueError: ``scale`` is 0.
        """
        if scale == 0:
            raise ValueError("scale: 0 cannot be divided by; leave it out to set the scale back to 1")
        for name in self.active_adapters:
            if name in self.scaling:
                self.set_scale(name, 1.0 if scale is None else self.scaling[name] / scale)

    def _restrains(self, adapter_name: str) -> bool:
        return self.restraint(adapter_name).name != "none"

    def _restraint_is_due(self, adapter_name: str) -> bool:
        config, state = self.prune_edit_config[adapter_name], self.prune_edit_update[adapter_name]
        if config.restrain_on == "merge" or not self._restrains(adapter_name) or state.pending == 0:
            return False
        if config.restrain_on == "threshold":
            return self._exceeds_a_threshold(adapter_name)
        return state.pending >= config.restrain_every

    def _exceeds_a_threshold(self, adapter_name: str) -> bool:
        config, condition = self.prune_edit_config[adapter_name], self.condition()
        most_norm, most_perturbation = config.max_update_norm, config.max_output_perturbation
        if math.isinf(condition.condition_number) and most_norm is None:
            # no growth can be told of an infinite κ; from σmax(W₀) on the restraint has something to shrink
            most_norm = 1.0
            if not self._told_of_singular_base and most_perturbation is None:
                self._told_of_singular_base = True
                warnings.warn(
                    f"{self.name_in_base}: its base weight is singular, κ(W0) is infinite and max_condition_growth "
                    "tells nothing; the restraint acts when ‖ΔW‖₂ exceeds σmax(W0) (set max_update_norm for another "
                    "threshold)"
                )
        figures = self.figures(adapter_name)
        if most_norm is not None and figures.spectral_norm > most_norm * condition.sigma_max:
            return True
        if most_perturbation is not None:
            perturbation = self.output_perturbation(adapter_name)
            if perturbation is None:
                raise ValueError(
                    f"max_output_perturbation: the second moment of {self.name_in_base} is not known; give it by "
                    "model.set_second_moments, or statistics to the session"
                )
            if perturbation > most_perturbation:
                return True
        if math.isinf(condition.condition_number):
            return False
        return figures.condition.condition_number > config.max_condition_growth * condition.condition_number

    def _is_narrow(self, adapter_name: str) -> bool:
        """Whether the effective factors are kept in fewer bits than the updates are summed in."""
        return torch.finfo(self.factors(adapter_name)[1].weight.dtype).bits < 32

    def _acting(self, adapter_name: str) -> LowRankUpdate:
        """The effective update in float32 (float64 for float64 factors), not rounded to narrower factors."""
        acting = self.prune_edit_update[adapter_name].acting
        if acting is not None:
            return acting
        effective = self.effective_update(adapter_name)
        return effective.to(torch.float32) if self._is_narrow(adapter_name) else effective

    def _raw(self, adapter_name: str) -> LowRankUpdate:
        """The accumulated update before any restraint."""
        raw = self.prune_edit_update[adapter_name].raw_sum()
        return self._acting(adapter_name) if raw is None else raw

    def _set_effective(self, adapter_name: str, update: LowRankUpdate) -> None:
        """Make this the effective update; narrower factors are rounded from it and it is kept.

        Raises:
            NonFiniteUpdateError: A value is too large for the factors' dtype; nothing has changed.
        """
        state = self.prune_edit_update[adapter_name]
        if self._is_narrow(adapter_name):
            dtype = self.prune_edit_B[adapter_name].weight.dtype
            update = update.to(torch.float32)
            stored = update if is_dense_form(update) else update.balanced()
            if not _is_finite(stored.to(dtype)):
                raise NonFiniteUpdateError(f"update: its factors are too large for {dtype} of {self.name_in_base}")
            state.acting, update = update, stored
        self._write(adapter_name, update)
        state.checksum = checksum(self.effective_update(adapter_name))

    def _write(self, adapter_name: str, update: LowRankUpdate) -> None:
        for name, value in (("prune_edit_A", update.A), ("prune_edit_B", update.B)):
            factor = getattr(self, name)[adapter_name]
            old = factor.weight
            value = value.detach().to(dtype=old.dtype).contiguous()
            # FSDP2 holds a shard of factors that were there before it: it keeps that, and new ones are whole
            if value.shape != old.shape or value.device != old.device or is_sharded(old):
                getattr(self, name)[adapter_name] = _factor(value, requires_grad=old.requires_grad)
            elif value.data_ptr() != old.data_ptr():
                # the same parameter, so that an optimizer keeps training it; its old tensor is left alone, since
                # states and snapshots refer to it
                old.data = value

    def _factor_weight(self, name: str, adapter_name: str) -> Tensor:
        factor = getattr(self, name)[adapter_name]
        with align_module_device(factor):
            return whole(factor.weight.detach())

    def hold_factors_whole(self, adapter_name: str) -> None:
        """Take factors that FSDP2 has sharded out of its hands; all processes must call it."""
        for factors, factor in zip((self.prune_edit_A, self.prune_edit_B), self.factors(adapter_name), strict=True):
            if is_sharded(factor.weight):
                value = whole(factor.weight)
                factors[adapter_name] = _factor(value, requires_grad=factor.weight.requires_grad)

    def get_base_weight(self) -> Tensor:
        """The base weight as it is stored, dequantized, and put together where FSDP2 shards it."""
        return whole(super().get_base_weight())

    def set_base_weight(self, weight_data: Tensor) -> None:
        """Write the base weight, quantized or sharded as it is."""
        weight = getattr(self.get_base_layer(), "weight", None)
        if self.quantization_backend is None and is_sharded(weight):
            write_shard(weight, weight_data)
        else:
            super().set_base_weight(weight_data)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Optional[torch.device] = None) -> None:
        # PEFT's method also casts to the base's dtype, which would round float32 factors when they are loaded with
        # low_cpu_mem_usage. Here the dtype changes only where the user asks for it (PruneEditModel).
        device = self._execution_device() if device is None else device
        if device is None or device.type == "meta":
            return
        for factors in (self.prune_edit_A, self.prune_edit_B):
            if adapter_name in factors and factors[adapter_name].weight.device.type != "meta":
                factors[adapter_name].to(device)

    def _execution_device(self) -> torch.device | None:
        base = self.get_base_layer()
        hook = getattr(base, "_hf_hook", None)
        if isinstance(hook, AlignDevicesHook) and hook.execution_device is not None:
            return torch.device(hook.execution_device)
        return self._get_base_layer_device_and_dtype(base)[0]

    def _current_update(self, adapter_name: str) -> AccumulatedUpdate:
        """The adapter's state, after a look whether an optimizer has changed the effective factors meanwhile."""
        state = self.prune_edit_update[adapter_name]
        if state.checksum is None:
            return state
        current = checksum(self.effective_update(adapter_name))
        if current is None or current == state.checksum:
            return state
        if current[0] == state.checksum[0]:
            # what was trained are the effective factors, so they are the raw ones from here on
            state.forget()
            state.acting = None
            state.raw_lost, state.trained = False, True
            state.pending = max(state.pending, 1) if state.watched else state.pending
        # factors of another dtype were cast, not trained
        state.checksum = current
        return state


class PruneEditLinear(nn.Module, PruneEditLayer):
    """PRUNE_EDIT in a linear layer: nn.Linear, transformers' Conv1D, or a quantized one that PEFT has a backend for."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: PruneEditConfig, r: int = 0, **kwargs: Any
    ) -> None:
        super().__init__()
        PruneEditLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, config=config, **kwargs)
        self.train(base_layer.training)

    def merge(self, safe_merge: bool = False, adapter_names: Optional[list[str]] = None) -> None:
        """Add the updates of these adapters (the active ones if not given) to the base weight.

        Args:
            safe_merge: Check the merged weight for NaN and Inf, and leave the base weight as it was if it has any.

        Raises:
            ValueError: With ``safe_merge``, the merged weight is not finite.
            MergeError: Less than ``min_share`` of an update arrives in the weight, or the weight is quantized and
                ``requantizes`` is not set. The base weight is as it was.
        """
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            if adapter_name not in self.prune_edit_A:
                continue
            self._require_writable()
            base = self.get_base_layer()
            before = self._snapshot()
            self._merge_one(adapter_name, safe_merge, before)
            if self._unmerged_base is None:
                self._unmerged_base = before
            self._merged_bits = bits_of(base)
            self.merged_adapters.append(adapter_name)

    def _require_writable(self) -> None:
        """Raise MergeError where the base is quantized, and nobody asked for quantizing it anew or its library cannot.

        Below rank 1 there is nothing to write.
        """
        backend = self.quantization_backend
        if backend is None or not any(self.rank(name) for name in self.prune_edit_A):
            return
        what = f"{self.name_in_base}: its base weight is quantized ({form_of(self.get_base_layer())})"
        if not backend.supports_merge:
            raise MergeError(
                f"{what}, and {backend.backend_name} cannot quantize a merged weight here; use merge_and_unload(), "
                "which dequantizes, merge into the full-precision base, or leave the adapter unmerged"
            )
        if not self.requantizes:
            raise MergeError(
                f"{what}, and quantizing it anew may lose edits; merge into the full-precision base, leave the adapter "
                "unmerged, or ask for it by name with requantize=True (merge_report tells what it loses)"
            )

    def _merge_one(self, adapter_name: str, safe_merge: bool, before: Any) -> None:
        """Write W + ΔW, and measure what became of ΔW; the base is as before where too little did.

        Raises:
            MergeError: Less than ``MIN_SHARE`` of ΔW arrived.
        """
        broken = safe_merge and not _is_finite(self.effective_update(adapter_name))
        if not broken:
            # a restraint that is pending has an error of its own for factors that are not finite
            self.apply_pending_restraint(adapter_name)
            if self.rank(adapter_name) == 0:
                self.realised[adapter_name] = Realised(1.0, 0.0)
                return
            delta, weight = self.get_delta_weight(adapter_name), self.get_base_weight()
            # summed in the wider dtype, rounded to the base's once
            wide = torch.promote_types(weight.dtype, delta.dtype)
            merged = (weight.to(wide) + delta.to(weight.device, wide)).to(weight.dtype)
            broken = safe_merge and not bool(torch.isfinite(merged).all())
        if broken:
            # begins with PEFT's own words, by which scripts recognise the case
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {adapter_name} seems to be broken: it would leave "
                f"NaN or Inf in the merged weights of a layer with weight {(self.out_features, self.in_features)}"
            )
        self.set_base_weight(merged)
        found = realised(weight, self.get_base_weight(), delta)
        self.realised[adapter_name] = found
        if found.share < self.min_share:
            before.restore(self.get_base_layer())
            raise MergeError(
                f"{self.name_in_base}: of the update of adapter {adapter_name!r} a share of {found.share:.2f} would "
                f"arrive in the merged weight ({self._said_form()}), at least {self.min_share} is accepted; nothing "
                "was merged. Merge into a base of higher precision, or leave the adapter unmerged"
            )

    def _said_form(self) -> str:
        return form_of(self.get_base_layer()) or str(self.get_base_weight().dtype).removeprefix("torch.")

    def unmerge(self) -> None:
        """Give the base layer back as it was before the first merge, bit for bit.

        Where another method has merged into or out of the same weight since then, its share stays and ours is taken
        off, which rounds once.
        """
        if not self.merged or self._unmerged_base is None:
            warnings.warn("Already unmerged. Nothing to do.")
            return
        bits = bits_of(self.get_base_layer())
        if bits == self._merged_bits or bits is None or self._merged_bits is None or bits[0] != self._merged_bits[0]:
            self._unmerged_base.restore(self.get_base_layer())
        else:
            weight = self.get_base_weight()
            rest = weight.double()
            for adapter_name in self.merged_adapters:
                rest = rest - self.get_delta_weight(adapter_name).to(weight.device, torch.float64)
            self.set_base_weight(rest.to(weight.dtype))
        self._unmerged_base, self._merged_bits = None, None
        self.merged_adapters.clear()

    def forward(self, x: Tensor, *args: Any, adapter_names: Optional[list[str]] = None, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            self._check_mixed_batch(x, adapter_names)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        acting = self._acting_of(self.active_adapters if adapter_names is None else dict.fromkeys(adapter_names))
        if not acting:
            return result
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        dtype = result.dtype
        for name, factors in acting.items():
            if adapter_names is None:
                result = result + self._change(factors, x).to(result.device)
                continue
            # every row has one adapter at most, so each is rounded once, as it is alone
            rows = torch.tensor([row for row, own in enumerate(adapter_names) if own == name], device=result.device)
            change = self._change(factors, x[rows.to(x.device)]).to(result.device)
            result.index_copy_(0, rows, (result[rows] + change).to(dtype))
        return result.to(dtype)

    def _acting_of(self, names: Iterable[str]) -> dict[str, Acting]:
        """What acts of these adapters, for the request that this call belongs to."""
        found = {name: self._acting_now(name) for name in names if name in self.prune_edit_A}
        if self._earlier is not None and not torch.compiler.is_compiling():
            found = {name: self._earlier.of_this_request(name) or acting for name, acting in found.items()}
        return {name: acting for name, acting in found.items() if acting[0].weight.shape[0] > 0}

    def _change(self, acting: Acting, x: Tensor) -> Tensor:
        """What one adapter adds to the output for inputs ``x``."""
        down, up, scale = acting
        change = up(down(_input_of(down, self._cast_input_dtype(x, down.weight.dtype))))
        return change if scale == 1 else change * scale

    def _check_mixed_batch(self, x: Tensor, adapter_names: list[str]) -> None:
        if self.merged:
            raise MergedAdapterError(
                f"adapter_names: {self.merged_adapters} are merged into every row; call unmerge_adapter() first"
            )
        if len(x) != len(adapter_names):
            raise ValueError(
                f"adapter_names: {len(adapter_names)} names, but {self.name_in_base} gets {len(x)} rows; one name for "
                "each row is accepted, and a layer that sees rows in another shape cannot take them"
            )

    def __repr__(self) -> str:
        return "prune_edit." + super().__repr__()

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)


def _factor(weight: Tensor, requires_grad: bool = True) -> nn.Linear:
    """A bias-free linear map with this weight, (out, in)."""
    # made small and widened, because nn.Linear warns when it initialises a weight of rank 0
    factor = nn.Linear(1, 1, bias=False, device="meta")
    factor.out_features, factor.in_features = weight.shape
    factor.weight = nn.Parameter(weight, requires_grad=requires_grad)
    return factor


def _input_of(module: nn.Linear, x: Tensor) -> Tensor:
    # an offloaded module stands on meta until its hook has moved it and the input
    return x if hasattr(module, "_hf_hook") else x.to(module.weight.device)


def _is_finite(update: LowRankUpdate) -> bool:
    return bool(torch.isfinite(update.A).all() and torch.isfinite(update.B).all())


def layers_of(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, PruneEditLayer]]:
    """Name and layer of everything in ``model`` that this adapter adapts."""
    return ((name, layer) for name, layer in all_layers(model) if adapter_name in layer.prune_edit_A)


def all_layers(model: nn.Module) -> Iterator[tuple[str, PruneEditLayer]]:
    """Name and layer of everything in ``model`` that any adapter adapts."""
    for name, module in model.named_modules():
        if isinstance(module, PruneEditLayer):
            yield name, module
