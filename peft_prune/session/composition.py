"""Adapters of several teams: composed into one, subtracted, compared, and their edits held against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model, set_peft_model_state_dict

from ..errors import AdapterError, HistoryError
from ..models.answers import normalized
from ..spectral import Comparison, LowRankUpdate, compare_updates, parse_restraint
from ..tuner import PruneEditConfig, PruneEditModel
from ..tuner.composition import require_same_base, require_weights
from ..tuner.files import says_restrained, updates_in
from ..tuner.hotswap import read_adapter
from .base import require_bare, require_base
from .facts import config_of
from .history import History
from .records import EditRecord, Factors, relation_key, subject_key
from .replay import Addition, additions, fitting, joined, replay

ON_CONFLICT = ("refuse", "keep")


@dataclass(frozen=True)
class Conflict:
    """Two edits that give one subject different targets in one relation.

    Args:
        sources: Where the two edits are from.
        first: The one.
        second: The other.
    """

    sources: tuple[str, str]
    first: EditRecord
    second: EditRecord

    def __str__(self) -> str:
        one, other = self.first.request, self.second.request
        assert one is not None and other is not None
        return (
            f"{self.sources[0]} edit {self.first.id} says {one.target_new!r} of {one.name!r} ({one.prompt!r}), "
            f"{self.sources[1]} edit {self.second.id} says {other.target_new!r}"
        )


@dataclass(frozen=True)
class EditComparison:
    """The edits that stand in two histories, by subject and relation.

    Args:
        first_alone: Those of the first on what the second does not touch.
        second_alone: The reverse.
        shared: Pairs that give the same target.
        conflicts: Pairs that do not.
    """

    first_alone: list[EditRecord]
    second_alone: list[EditRecord]
    shared: list[tuple[EditRecord, EditRecord]]
    conflicts: list[Conflict]


@dataclass(frozen=True)
class AdapterComparison:
    """Two adapters of one base.

    Args:
        layers: What the updates of each layer have in common, by module name; a layer that one of them leaves alone
            has an update of rank 0 there.
        raw: Of either, whether its updates are the raw ones, as a history has them, or what acts, as a file has them.
        edits: What their histories say, where both are histories.
    """

    layers: dict[str, Comparison]
    raw: tuple[bool, bool]
    edits: EditComparison | None


@dataclass(frozen=True)
class _Source:
    """A saved adapter or a history, opened for reading."""

    name: str
    fingerprint: str | None
    history: History | None = None
    config: PruneEditConfig | None = None
    entries: Mapping[str, Any] | None = None

    def updates(self) -> dict[str, LowRankUpdate]:
        """By module: what a file holds, or the raw sum of a history."""
        if self.history is None:
            assert self.entries is not None
            return updates_in(self.entries)
        steps = additions(self.history.edits(standing=True), self.history.factors)
        for name, shapes in _shapes(steps).items():
            if len(shapes) > 1:
                raise HistoryError(f"history: {self.name}: its factors of {name!r} have the shapes {sorted(shapes)}")
        return joined([Factors(step.updates) for step in steps])

    @property
    def restrained(self) -> bool:
        """Whether what `updates` gives is restrained already."""
        return self.config is not None and says_restrained(self.config, self.entries or {})

    def add_to(self, model: Any, adapter: str) -> Any:
        """``model`` with this as an adapter of that name."""
        config = self.config if self.history is None else config_of(self.history.meta, self.name)
        assert config is not None
        config.strict_base = True
        if isinstance(model, PeftModel):
            model.add_adapter(adapter, config)
        else:
            model = get_peft_model(model, config, adapter)
        if self.history is None:
            assert self.entries is not None
            set_peft_model_state_dict(model, dict(self.entries), adapter)
            return model
        model.set_adapter(adapter)
        steps = additions(self.history.edits(standing=True), fitting(model, self.history.factors))
        replay(model, steps, self.history.restraints())
        return model


def compose(
    adapters: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    *,
    model: Any,
    adapter_name: str | None = None,
    restraint: str | None = None,
    on_conflict: str = "refuse",
) -> Any:
    """The adapter Σ w ΔW of others: raw updates are added where they are known, and restrained once.

    F(a + b) is not F(a) + F(b), so histories, which hold the raw updates, are what is best composed. Of a file that
    was saved restrained what acts is added as it is, with a warning.

    Args:
        adapters: Folders of adapters, ``user/name[@revision]`` on the Hub, and files of histories; where ``model`` is
            a PEFT model, names of adapters that it holds.
        weights: One for each, 1 if not given; ``[1, -1]`` subtracts.
        model: The base, which then carries the new adapter alone; or a PEFT model, which gets it beside its own.
        adapter_name: Name of the new adapter; "default", or "composed" in a PEFT model, if not given.
        restraint: A word such as ``"log:1.2"`` for every layer; needed where the adapters' own differ.
        on_conflict: "refuse" histories that give one subject different targets in one relation, or "keep" both edits.

    Returns:
        The PEFT model. Nothing has changed in ``model`` where an error is raised.

    Raises:
        ValueError: A weight, a name or a word is none that is accepted, or histories are in conflict.
        AdapterError: The adapters were made for different bases, or one is damaged.
        HistoryError: A history is damaged, or belongs to another model.
    """
    if isinstance(adapters, (str, Path)):
        raise ValueError(f"adapters: {str(adapters)!r} must be a list")
    adapters = list(adapters)
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    require_weights(weights, len(adapters))
    require_options(restraint, on_conflict)
    if isinstance(model, PeftModel):
        if not isinstance(model.base_model, PruneEditModel):
            raise AdapterError("model: its adapters are of another method, PRUNE_EDIT is accepted")
        names = [str(name) for name in adapters]
        model.base_model.add_weighted_adapter(names, weights, adapter_name or "composed", restraint=restraint)
        return model
    require_bare(model)
    with _opened(adapters) as sources:
        if on_conflict == "refuse":
            _refuse_conflicts(sources, weights)
        return _composed(sources, weights, model, adapter_name or "default", restraint)


def require_options(restraint: str | None, on_conflict: str) -> None:
    """Raise ValueError where `compose` would not take one of these."""
    if restraint is not None:
        parse_restraint(restraint)
    if on_conflict not in ON_CONFLICT:
        raise ValueError(f"on_conflict: {on_conflict!r} is not one of {', '.join(ON_CONFLICT)}")


def compare_adapters(one: str | Path, other: str | Path) -> AdapterComparison:
    """Compare two adapters of one base: their updates by layer, and, of histories, their edits.

    Args:
        one: Folder of an adapter, ``user/name[@revision]`` on the Hub, or the file of a history.
        other: The same.

    Raises:
        AdapterError: They were made for different bases, or one is damaged.
        HistoryError: A history is damaged.
    """
    with _opened([one, other]) as (first, second):
        updates = first.updates(), second.updates()
        layers = {}
        for name in dict.fromkeys([*updates[0], *updates[1]]):
            pair = [own.get(name) for own in updates]
            shape = next(update.shape for update in pair if update is not None)
            known = [LowRankUpdate.zeros(*shape) if update is None else update for update in pair]
            if known[0].shape != known[1].shape:
                raise AdapterError(f"adapters: {name} is {known[0].shape} in one and {known[1].shape} in the other")
            layers[name] = compare_updates(*known)
        edits = None
        if first.history is not None and second.history is not None:
            edits = compare_edits(first.history, second.history)
        return AdapterComparison(layers, (not first.restrained, not second.restrained), edits)


def compare_edits(one: History, other: History) -> EditComparison:
    """Hold the edits that stand in two histories against each other.

    Where a history has several edits of one subject and relation, its last one counts.
    """
    first, second = _last_by_fact(one), _last_by_fact(other)
    shared, conflicts = [], []
    for fact in [fact for fact in first if fact in second]:
        pair = first[fact], second[fact]
        if _target(pair[0]) == _target(pair[1]):
            shared.append(pair)
        else:
            conflicts.append(Conflict((str(one.path), str(other.path)), *pair))
    return EditComparison(
        [record for fact, record in first.items() if fact not in second],
        [record for fact, record in second.items() if fact not in first],
        shared,
        conflicts,
    )


def conflicts(histories: Sequence[History]) -> list[Conflict]:
    """Every pair of edits in any two of the histories that gives one subject different targets in one relation."""
    return [found for one, other in combinations(histories, 2) for found in compare_edits(one, other).conflicts]


def _last_by_fact(history: History) -> dict[tuple[str, str], EditRecord]:
    standing = sorted(history.edits(standing=True), key=lambda record: (record.appended or 0, record.id))
    return {(subject_key(r.request), relation_key(r.request)): r for r in standing if r.request is not None}


def _target(record: EditRecord) -> str:
    assert record.request is not None
    return normalized(record.request.target_new)


def _refuse_conflicts(sources: Sequence[_Source], weights: Sequence[float]) -> None:
    # an adapter that is subtracted contradicts nothing
    added = [s.history for s, weight in zip(sources, weights, strict=True) if s.history is not None and weight > 0]
    found = conflicts(added)
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise ValueError(
            f"adapters: their histories are in conflict: {found[0]}{more}; undo one of them, or keep both with "
            "on_conflict='keep'"
        )


@contextmanager
def _opened(places: Sequence[str | Path]) -> Iterator[list[_Source]]:
    if not places:
        raise ValueError("adapters: none is given; at least one is needed")
    with ExitStack() as stack:
        sources = []
        for place in places:
            if Path(place).is_file():
                history = stack.enter_context(History.read(place))
                stack.enter_context(history.snapshot())
                sources.append(_Source(str(place), history.meta["base"], history))
            else:
                config, entries = read_adapter(place)
                sources.append(_Source(str(place), config.base_fingerprint, None, config, entries))
        require_same_base({source.name: source.fingerprint for source in sources})
        yield sources


def _shapes(steps: Sequence[Addition]) -> dict[str, set[tuple[int, int]]]:
    """The shapes of the updates of every module; of a history that is whole, one each."""
    found: dict[str, set[tuple[int, int]]] = {}
    for step in steps:
        for name, update in step.updates.items():
            found.setdefault(name, set()).add(update.shape)
    return found


def _composed(
    sources: Sequence[_Source], weights: Sequence[float], model: Any, adapter_name: str, restraint: str | None
) -> Any:
    for source in sources:
        if source.history is not None:
            require_base(source.history.meta, model, source.name)
    parts = [f"adapter {number}" for number in range(1, len(sources) + 1)]
    edited = model
    try:
        for source, part in zip(sources, parts, strict=True):
            edited = _added(source, edited, part)
        edited.base_model.add_weighted_adapter(parts, list(weights), adapter_name, restraint=restraint)
        edited.set_adapter(adapter_name, inference_mode=True)
        for part in parts:
            edited.delete_adapter(part)
        return edited.eval()
    except BaseException:
        if isinstance(edited, PeftModel):
            edited.unload()
        raise


def _added(source: _Source, model: Any, adapter: str) -> Any:
    try:
        return source.add_to(model, adapter)
    except AdapterError as error:
        raise AdapterError(f"{error} ({source.name})") from None
