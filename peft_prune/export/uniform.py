"""Factors of one rank for all layers, from factors of many: truncated, balanced, padded with zeros."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import AdapterError
from ..spectral import LowRankUpdate, truncate
from .source import Source

_EXPONENTS = torch.finfo(torch.float32).eps
"""Singular values below this share of the largest are beyond what float32 factors can hold."""

_INDEX = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class UniformLora:
    """A LoRA of scale 1 whose factors have one rank in every layer.

    Args:
        factors: B (out, r) and A (r, in) by the module's name in the base, float32.
        rank: r.
        source: The adapter it was made of.
        errors: ‖ΔW − truncated‖_F / ‖ΔW‖_F of the layers that were truncated.
        incomplete: Kinds of modules, such as ``mlp.down_proj``, that only some layers have factors for.
    """

    factors: Mapping[str, LowRankUpdate]
    rank: int
    source: Source
    errors: Mapping[str, float] = field(default_factory=dict)
    incomplete: tuple[str, ...] = ()

    @property
    def smallest_side(self) -> int:
        """The smallest side of a layer that it changes."""
        return min(min(update.shape) for update in self.factors.values())


def uniform_lora(
    source: Source, *, rank: int | None = None, max_rank: int | None = None, fill_layers: bool = False
) -> UniformLora:
    """The adapter's update with one rank r in every layer.

    Args:
        source: The adapter.
        rank: r; the largest rank of a layer if not given.
        max_rank: Truncate layers of a larger rank to this one.
        fill_layers: Zero factors for the modules of the same kind in all other layers.

    Raises:
        AdapterError: A layer's rank is above ``rank``, or the base's layers are not known.
    """
    errors: dict[str, float] = {}
    kept: dict[str, LowRankUpdate] = {}
    for name, update in source.updates.items():
        own = _own_rank(update)
        most = own if max_rank is None else min(own, max_rank)
        kept[name], error = truncate(update.to(torch.float32), rank=most)
        if most < own:
            errors[name] = error
    needed = max(update.rank for update in kept.values())
    if rank is not None and rank < needed:
        raise AdapterError(
            f"rank: {rank} is below {needed}, the adapter's rank; give at least that, or truncate with max_rank "
            "(--max-rank)"
        )
    uniform = needed if rank is None else rank
    alike = _alike(source) if source.shapes else {}
    if fill_layers:
        if not source.shapes:
            raise AdapterError("fill_layers: needs the base, whose layers the adapter's file does not know (--base)")
        for name in sorted(set().union(*alike.values()) - set(kept)):
            kept[name] = LowRankUpdate.zeros(*source.shapes[name])
    return UniformLora(
        {name: _padded(update, uniform) for name, update in kept.items()},
        uniform,
        source,
        errors,
        _incomplete(alike, set(kept)) if source.shapes else _unequal(set(kept)),
    )


def kind_of(name: str) -> str:
    """A module's name within its layer, such as ``mlp.down_proj``."""
    return _INDEX.split(name, maxsplit=1)[-1]


def _own_rank(update: LowRankUpdate) -> int:
    values = update.singular_values()
    return max(int((values > _EXPONENTS * values[0]).sum()), 1)


def _padded(update: LowRankUpdate, rank: int) -> LowRankUpdate:
    missing = rank - update.rank
    up: Tensor = torch.nn.functional.pad(update.B, (0, missing))
    down: Tensor = torch.nn.functional.pad(update.A, (0, 0, 0, missing))
    return LowRankUpdate(up.contiguous(), down.contiguous())


def _alike(source: Source) -> dict[str, set[str]]:
    """All modules of the base that stand at the places of the edited ones in other layers, by their kind."""
    places = {_INDEX.sub(".*.", name, count=1): kind_of(name) for name in source.updates}
    found: dict[str, set[str]] = {kind: set() for kind in places.values()}
    for name in source.shapes:
        kind = places.get(_INDEX.sub(".*.", name, count=1))
        if kind is not None:
            found[kind].add(name)
    return found


def _incomplete(alike: Mapping[str, set[str]], present: set[str]) -> tuple[str, ...]:
    return tuple(sorted(kind for kind, names in alike.items() if not names <= present))


def _unequal(present: set[str]) -> tuple[str, ...]:
    """Without the base: kinds for which a layer below the highest one has no factors, which is all that can be seen."""
    layers: dict[str, set[int]] = {}
    for name in present:
        found = _INDEX.search(name)
        if found:
            layers.setdefault(kind_of(name), set()).add(int(found[1]))
    return tuple(sorted(kind for kind, own in layers.items() if own != set(range(max(own) + 1))))
