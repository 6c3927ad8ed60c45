"""Build an adapter from the factors of edits: for resuming, undoing and changing strengths."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

import torch
from torch import Tensor

from ..editors import Earlier, Edit
from ..editors.closed_form import CONDENSED_AT, condensed
from ..editors.running import merged
from ..errors import HistoryError
from ..spectral import LowRankUpdate
from ..tuner import PruneEditLayer
from ..tuner.config import STEPWISE
from .consolidations import ConsolidationRecord
from .records import EditRecord, Factors, RestraintRecord


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


def replay(
    model: Any,
    steps: Sequence[Addition],
    restraints: Sequence[RestraintRecord],
    consolidation: ConsolidationRecord | None = None,
) -> None:
    """Make the adapter hold these additions, restrained where and when the history says so.

    A consolidation that still stands takes the place of F(raw) at its moment.

    F is applied to the raw sum, so of several restraints of a layer the last alone leaves a trace; only the schedules
    `STEPWISE` need them all. What lies between two of them is added at once: the cost grows linearly with the edits.

    Raises:
        HistoryError: A restraint is of a module that is not adapted.
    """
    adapter = model.one_adapter(None)
    layers = dict(model.edited_layers())
    stepwise = model.peft_config[adapter].restrain_on in STEPWISE
    points = {name: list[int]() for name in layers}
    for record in restraints:
        if record.module not in layers:
            raise HistoryError(f"history: its restraint of {record.module!r} is of no adapted module")
        points[record.module].append(record.batch)
    if consolidation is not None:
        later = [step for step in steps if step.batch > consolidation.batch]
        replay(model, [step for step in steps if step.batch <= consolidation.batch], restraints)
        set_consolidated(model, consolidation.updates)
        for name, layer in layers.items():
            _append(layer, adapter, name, [step for step in later if name in step.updates])
        return
    ordered = sorted(steps, key=lambda step: step.batch)
    for name, layer in layers.items():
        device = layer.effective_update(adapter).device
        layer.set_raw_update(adapter, LowRankUpdate.zeros(layer.out_features, layer.in_features, device=device), 0)
        waiting = deque(step for step in ordered if name in step.updates)
        for batch in points[name] if stepwise else points[name][-1:]:
            _append(layer, adapter, name, [waiting.popleft() for _ in range(_until(waiting, batch))])
            layer.apply_restraint(adapter)
        _append(layer, adapter, name, waiting)


def set_consolidated(model: Any, updates: Mapping[str, LowRankUpdate]) -> None:
    """Let trained factors act in every layer.

    Raises:
        HistoryError: They are for other layers.
    """
    adapter, layers = model.one_adapter(None), dict(model.edited_layers())
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    for name, update in updates.items():
        if shapes.get(name) != tuple(update.shape):
            raise HistoryError(f"history: its consolidation is of {name!r}, which is not adapted or of another shape")
    for name, update in updates.items():
        layers[name].set_consolidated(adapter, update)


def _until(steps: Iterable[Addition], batch: int) -> int:
    """How many of the steps, which are in order, belong to this batch or to earlier ones."""
    return sum(1 for _ in takewhile(lambda step: step.batch <= batch, steps))


def _append(layer: PruneEditLayer, adapter: str, name: str, steps: Collection[Addition]) -> None:
    if steps:
        update = side_by_side([step.updates[name] for step in steps])
        layer.append_update(adapter, update, sum(step.edits for step in steps), on_schedule=False)


def fitting(model: Any, factors: Callable[[int], Factors]) -> Callable[[int], Factors]:
    """``factors``, each looked at whether it fits the adapted layers of ``model``.

    Raises:
        HistoryError: By what is returned: a module is not adapted, or a shape is not its own.
    """
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in model.edited_layers()}

    def checked(leader: int) -> Factors:
        found = factors(leader)
        for name, part in found.features.items():
            if name in shapes and tuple(part.shape) != (2, 1 + sum(shapes[name])):
                raise HistoryError(
                    f"history: edit {leader}: its statistics of {name!r} are for a layer of another shape"
                )
        widths = {name: (shapes.get(name, (0, 0))[0], key.shape[1]) for name, key in found.keys.items()}
        for name, shape in [*((name, tuple(u.shape)) for name, u in found.updates.items()), *widths.items()]:
            if name not in shapes:
                raise HistoryError(f"history: edit {leader}: its factors are of {name!r}, which is not adapted")
            if shape != shapes[name]:
                raise HistoryError(
                    f"history: edit {leader}: its factors of {name!r} are for a layer of shape {shape}, this one has "
                    f"{shapes[name]}"
                )
        return found

    return checked


def scaled(factors: Factors, strength: float) -> Factors:
    """The factors with their updates multiplied; as they are for strength 1."""
    if strength == 1.0:
        return factors
    return Factors(
        {name: update.scaled(strength) for name, update in factors.updates.items()}, factors.keys, factors.features
    )


def joined(parts: Sequence[Factors]) -> dict[str, LowRankUpdate]:
    """One update for each module: the factors of the parts side by side."""
    names = list(dict.fromkeys(name for part in parts for name in part.updates))
    found = {}
    for name in names:
        found[name] = side_by_side([part.updates[name] for part in parts if name in part.updates])
    return found


def side_by_side(updates: Sequence[LowRankUpdate]) -> LowRankUpdate:
    """The sum of updates, their factors side by side; a single one as it is."""
    if len(updates) == 1:
        return updates[0]
    # thousands of single columns are written far faster as rows
    return LowRankUpdate(torch.cat([update.B.T for update in updates]).T, torch.cat([u.A for u in updates]))


class JoinedKeys(Earlier):
    """Keys one under the other by module, (n, in), for editors that keep a history; joined where one asks for them.

    They are condensed where they are many. A session whose editor needs no keys does not pay for that. Beside them
    stand the running statistics of the edits, merged in the same order.

    Args:
        parts: In their order.
        features: Running statistics of what stands before them.
    """

    def __init__(self, parts: Iterable[Factors] = (), features: Mapping[str, Tensor] | None = None) -> None:
        self._parts: dict[str, list[Tensor]] = {}
        self._features = dict(features or {})
        self._owed: Mapping[str, LowRankUpdate] = {}
        for part in parts:
            for name, keys in part.keys.items():
                self._parts.setdefault(name, []).append(keys)
            for name, own in part.features.items():
                before = [self._features[name]] if name in self._features else []
                state = merged([*before, own])
                assert state is not None
                self._features[name] = state

    @property
    def features(self) -> Mapping[str, Tensor]:
        return self._features

    @property
    def owed(self) -> Mapping[str, LowRankUpdate]:
        return self._owed

    def owing(self, owed: Mapping[str, LowRankUpdate]) -> JoinedKeys:
        """The same beside what the restraint owes the next edit."""
        found = copy(self)
        found._owed = owed
        return found

    def __getitem__(self, name: str) -> Tensor:
        parts = self._parts[name]
        if len(parts) > 1 or len(parts[0]) > CONDENSED_AT * parts[0].shape[1]:
            self._parts[name] = parts = [condensed(parts)]
        return parts[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def plus(self, parts: Iterable[Factors]) -> JoinedKeys:
        """These and further ones; what is held stays below twice the layer's width."""
        found = JoinedKeys(
            [*(Factors({}, {name: keys}) for name, held in self._parts.items() for keys in held), *parts],
            self._features,
        )
        for name, held in found._parts.items():
            if sum(len(keys) for keys in held) > 2 * held[0].shape[1]:
                found[name]
        return found


def split(edit: Edit) -> dict[int, Factors]:
    """The factors of each request of an edit by its index; one entry for all where they belong together."""
    if not edit.is_separable:
        return {0: _on_cpu(edit.updates, edit.keys, {n: _merged_part(p) for n, p in edit.features.items()})}
    found = {}
    for index in range(len(edit.requests)):
        updates = {}
        for name, update in edit.updates.items():
            columns = [column for column, owner in enumerate(edit.owners[name]) if owner == index]
            updates[name] = LowRankUpdate(update.B[:, columns], update.A[columns])
        found[index] = _on_cpu(
            updates,
            {name: keys[index : index + 1] for name, keys in edit.keys.items()},
            {name: parts[index] for name, parts in edit.features.items()},
        )
    return found


def _merged_part(parts: Tensor) -> Tensor:
    """What the requests of a batch that cannot be taken apart bring together."""
    found = merged(parts)
    assert found is not None
    return found


def _on_cpu(
    updates: Mapping[str, LowRankUpdate], keys: Mapping[str, Tensor], features: Mapping[str, Tensor]
) -> Factors:
    # as the history gives them back, so that what is added now and what is added after resuming are the same
    return Factors(
        {name: LowRankUpdate(_plain(u.B), _plain(u.A)) for name, u in updates.items()},
        {name: _plain(key) for name, key in keys.items()},
        {name: _plain(part) for name, part in features.items()},
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous()
