"""Build an adapter from the factors of edits: for resuming, undoing and changing strengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..editors import Edit
from ..editors.closed_form import CONDENSED_AT, condensed
from ..spectral import LowRankUpdate
from .history import EditRecord, Factors, RestraintRecord


@dataclass(frozen=True)
class Addition:
    """What one call of ``add_edits`` adds.

    Args:
        batch: The batch it belongs to.
        updates: By module name.
        edits: How many edits they hold.
    """

    batch: int
    updates: Mapping[str, LowRankUpdate]
    edits: int


def additions(records: Iterable[EditRecord], factors: Callable[[int], Factors]) -> list[Addition]:
    """The additions of edits that stand, in the order in which they were made, with their strengths."""
    found = []
    standing = sorted((r for r in records if r.stands), key=lambda record: (record.appended or 0, record.id))
    for _, group in groupby(standing, key=lambda record: record.appended):
        members = list(group)
        leaders = {member.leader: member.strength for member in members}
        parts = [scaled(factors(leader), strength) for leader, strength in leaders.items() if leader is not None]
        found.append(Addition(members[0].batch, joined(parts), len(members)))
    return found


def replay(model: Any, steps: Sequence[Addition], restraints: Sequence[RestraintRecord]) -> None:
    """Make the adapter hold these additions, restrained where and when the history says so.

    F is applied to the raw sum, so of several restraints of a layer the last alone leaves a trace; only the compounding
    schedule needs them all.
    """
    adapter = model.one_adapter(None)
    layers = dict(model.edited_layers())
    compounding = model.peft_config[adapter].restrain_on == "compounding"
    last = {record.module: index for index, record in enumerate(restraints)}
    for layer in layers.values():
        empty = LowRankUpdate.zeros(
            layer.out_features, layer.in_features, device=layer.effective_update(adapter).device
        )
        layer.set_raw_update(adapter, empty, edits=0)
    numbers = sorted({step.batch for step in steps} | {record.batch for record in restraints})
    for number in numbers:
        for step in steps:
            if step.batch == number:
                model.add_edits(step.updates, edits=step.edits, on_schedule=False)
        for index, record in enumerate(restraints):
            if record.batch == number and (compounding or last[record.module] == index):
                layers[record.module].apply_restraint(adapter)


def scaled(factors: Factors, strength: float) -> Factors:
    """The factors with their updates multiplied; as they are for strength 1."""
    if strength == 1.0:
        return factors
    return Factors({name: update.scaled(strength) for name, update in factors.updates.items()}, factors.keys)


def joined(parts: Sequence[Factors]) -> dict[str, LowRankUpdate]:
    """One update for each module: the factors of the parts side by side."""
    names = list(dict.fromkeys(name for part in parts for name in part.updates))
    found = {}
    for name in names:
        updates = [part.updates[name] for part in parts if name in part.updates]
        found[name] = LowRankUpdate(
            torch.cat([update.B for update in updates], dim=1), torch.cat([update.A for update in updates])
        )
    return found


def joined_keys(parts: Iterable[Factors]) -> dict[str, Tensor]:
    """The keys of the parts one under the other, for editors that keep a history; condensed where they are many."""
    found: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    for part in parts:
        for name, keys in part.keys.items():
            found.setdefault(name, []).append(keys)
            counts[name] = counts.get(name, 0) + len(keys)
            if counts[name] > CONDENSED_AT * keys.shape[1]:
                found[name] = [condensed(torch.cat(found[name]))]
                counts[name] = len(found[name][0])
    return {name: torch.cat(keys) for name, keys in found.items()}


def split(edit: Edit) -> dict[int, Factors]:
    """The factors of each request of an edit by its index; one entry for all where they belong together."""
    if not edit.is_separable:
        return {0: _on_cpu(edit.updates, edit.keys)}
    found = {}
    for index in range(len(edit.requests)):
        updates = {}
        for name, update in edit.updates.items():
            columns = [column for column, owner in enumerate(edit.owners[name]) if owner == index]
            updates[name] = LowRankUpdate(update.B[:, columns], update.A[columns])
        found[index] = _on_cpu(updates, {name: keys[index : index + 1] for name, keys in edit.keys.items()})
    return found


def _on_cpu(updates: Mapping[str, LowRankUpdate], keys: Mapping[str, Tensor]) -> Factors:
    # as the history gives them back, so that what is added now and what is added after resuming are the same
    return Factors(
        {name: LowRankUpdate(_plain(u.B), _plain(u.A)) for name, u in updates.items()},
        {name: _plain(key) for name, key in keys.items()},
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous()
