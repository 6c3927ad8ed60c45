"""Experts that transformers fuses into one parameter: an adapter for the down projection of each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional, cast

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..models.experts import PLACE, ExpertMap, by_expert, computes, expert_names, inner, is_experts, routed, why_not
from .header import name_in_base
from .layer import PruneEditLinear


class PruneEditExpert(PruneEditLinear):
    """PRUNE_EDIT in the down projection of one expert; its forward gives what the adapters add to its output."""

    def forward(self, x: Tensor, *args: Any, adapter_names: Optional[list[str]] = None, **kwargs: Any) -> Tensor:
        """Σ ΔW x of the active adapters, (tokens, out), for inputs of this expert (tokens, in).

        Raises:
            ValueError: Every row of a batch has an adapter of its own: the rows are not known any more.
        """
        if adapter_names is not None:
            raise ValueError(
                f"adapter_names: {self.name_in_base} is one of several experts, which see tokens and no rows; give one "
                "adapter for the whole batch"
            )
        found = x.new_zeros(len(x), self.out_features, dtype=torch.promote_types(x.dtype, torch.float32))
        for factors in self._acting_of(self.active_adapters).values():
            found = found + self._change(factors, x).to(found)
        return found

    @property
    def acts(self) -> bool:
        """Whether it adds something to what its expert computes."""
        ranks = (self.rank(name) for name in self.active_adapters if name in self.prune_edit_A)
        return not self.disable_adapters and not self.merged and any(ranks)

    def get_base_weight(self) -> Tensor:
        """A copy of the expert's weight, (out, in): what is written goes into the memory of all experts."""
        return self._map().weight.data.clone()

    def set_base_weight(self, weight_data: Tensor) -> None:
        self._map().write(weight_data)

    def _snapshot(self) -> _ExpertSnapshot:
        return _ExpertSnapshot(self._map())

    def _map(self) -> ExpertMap:
        return cast(ExpertMap, self.get_base_layer())


class _ExpertSnapshot:
    """A copy of the weight of one expert; those beside it stay as they are."""

    def __init__(self, base: ExpertMap) -> None:
        self._weight = base.weight.data.clone()

    def sharded_weight(self) -> None:
        """Experts that processes share out are not edited."""
        return None

    def restore(self, base: ExpertMap) -> None:
        """Write it back."""
        base.write(self._weight)


def open_experts(model: nn.Module, is_target: Callable[[str], Any]) -> None:
    """Give the down projection of every fused expert that ``is_target`` asks for, by its name, a module of its own.

    Raises:
        UnsupportedModelError: Such experts do not compute what their weights say, or are under another method.
    """
    for name, experts in list(model.named_modules()):
        if not is_experts(experts):
            continue
        own = name_in_base(name)
        chosen = [index for index, one in enumerate(expert_names(own, experts)) if is_target(one)]
        if not chosen:
            continue
        reason = why_not(experts)
        if reason is None and own.endswith(".base_layer"):
            reason = "they are under another method's adapter; merge or unload that one first"
        if reason is None and PLACE not in experts._modules and not computes(experts):
            reason = f"{type(experts).__name__} computes something else than Σ gate · (W k + b)"
        if reason is not None:
            raise UnsupportedModelError(
                f"{own}: its experts cannot be edited: {reason}; layers with an ordinary MLP, and experts that all "
                "tokens share, can be"
            )
        _open(experts, chosen)


def _open(experts: nn.Module, chosen: list[int]) -> None:
    if PLACE not in experts._modules:
        experts.add_module(PLACE, nn.ModuleDict())
        experts.register_forward_pre_hook(_unmerge_disabled)
        experts.register_forward_hook(_add_changes, with_kwargs=True)
    held: Any = experts._modules[PLACE]
    for index in chosen:
        if str(index) not in held:
            held[str(index)] = ExpertMap(experts, index)


def close_experts(model: nn.Module) -> None:
    """Take the modules of single experts away again, where no adapter is left in them."""
    for experts in list(model.modules()):
        held = experts._modules.get(PLACE) if is_experts(experts) else None
        if held is None or any(isinstance(one, PruneEditExpert) for one in held.children()):
            continue
        del experts._modules[PLACE]
        for hooks in (experts._forward_pre_hooks, experts._forward_hooks):
            for key, hook in list(hooks.items()):
                if hook in (_unmerge_disabled, _add_changes):
                    del hooks[key]
                    experts._forward_hooks_with_kwargs.pop(key, None)


# plain functions that find everything on the module, so that copies of a model have hooks of their own
def _layers(experts: nn.Module) -> Iterator[tuple[int, PruneEditExpert]]:
    held: Any = experts._modules[PLACE]
    for key, layer in held.items():
        if isinstance(layer, PruneEditExpert):
            yield int(key), layer


def _unmerge_disabled(experts: nn.Module, args: tuple[Any, ...]) -> None:
    """As every adapted layer does at a call with its adapters disabled."""
    for _, layer in _layers(experts):
        if layer.disable_adapters and layer.merged:
            layer.unmerge()


def _add_changes(experts: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor | None:
    """The experts' output with Σ gate · ΔW k of every adapted one; the very same where none acts."""
    acting = {index: layer for index, layer in _layers(experts) if layer.acts}
    if not acting:
        return None
    x, index, gates = routed(experts, args, kwargs)
    result = output.reshape(-1, output.shape[-1]).to(torch.promote_types(output.dtype, torch.float32))
    for own, rows, slots in by_expert(index):
        if own in acting:
            change = acting[own](inner(experts, x[rows], own)) * gates[rows, slots, None]
            result = result.index_add(0, rows.to(result.device), change.to(result))
    return result.to(output.dtype).view_as(output)
