"""Which tensor of an edited checkpoint belongs to which of the base."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import CheckpointError
from .checkpoint import Checkpoint, StoredTensor
from .structure import WRAPPERS, Structure


@dataclass(frozen=True)
class Pair:
    """One tensor of the base and what became of it.

    Args:
        name: Its name in the model.
        base: Before.
        edited: After.
    """

    name: str
    base: StoredTensor
    edited: StoredTensor


@dataclass(frozen=True)
class Matching:
    """All pairs of two checkpoints.

    Args:
        pairs: In the base's order; a tied tensor that only one of them stores is compared with the one it is tied to.
        reshaped: Names with the shapes before and after, which cannot be compared.
        ignored: Tensors that are no parameters of the model.
        renamed: How many names of the edited checkpoint differ from the base's.
    """

    pairs: tuple[Pair, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    ignored: tuple[str, ...]
    renamed: int


def match(base: Checkpoint, edited: Checkpoint, structure: Structure | None) -> Matching:
    """Pair the tensors of two checkpoints.

    Args:
        base: Before.
        edited: After.
        structure: The base's model; without it names must agree up to wrappers.

    Raises:
        CheckpointError: A tensor that is no buffer is in one of them alone; the message names it and the closest name.
    """
    before, after = _canonical(base, structure), _canonical(edited, structure)
    if structure is None:
        before, after = _without_prefix(before, after), _without_prefix(after, before)
    tied = {} if structure is None else structure.tied
    _complete(before, after, tied)
    _complete(after, before, tied)
    known = None if structure is None else set(structure.parameters)
    missing = [name for name in before if name not in after]
    extra = [name for name in after if name not in before]
    # masks and position tables, which old checkpoints hold and newer ones do not
    strange = [] if known is None else [name for name in dict.fromkeys((*before, *after)) if name not in known]
    unknown = set(strange)
    lacking, surplus = ([name for name in names if name not in unknown] for names in (missing, extra))
    if lacking or surplus:
        # a tensor under another name is unknown to the model, and still the best hint
        raise CheckpointError(_mismatch(base, edited, lacking, extra if lacking else surplus, len(before)))
    common = [name for name in before if name in after and name not in unknown]
    same = [name for name in common if before[name].shape == after[name].shape]
    if not same:
        raise CheckpointError(f"checkpoint: no tensor of {edited.path} has the shape that it has in {base.path}")
    return Matching(
        tuple(Pair(name, before[name], after[name]) for name in same),
        {name: (before[name].shape, after[name].shape) for name in common if name not in set(same)},
        tuple(strange),
        sum(before[name].key != after[name].key for name in common),
    )


def _canonical(checkpoint: Checkpoint, structure: Structure | None) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, stored in checkpoint.tensors.items():
        own = WRAPPERS.sub("", name) if structure is None else structure.canonical(name)
        if own in found:
            raise CheckpointError(f"checkpoint: {checkpoint.path} holds {own} twice, as {found[own].key} and as {name}")
        found[own] = stored
    return found


def _complete(own: dict[str, StoredTensor], other: Mapping[str, StoredTensor], tied: Mapping[str, str]) -> None:
    """Add the tied tensors that only the other checkpoint stores, as the ones they are tied to, and the other way."""
    for name, target in tied.items():
        for one, source in ((name, target), (target, name)):
            if one in other and one not in own and source in own:
                own[one] = own[source]


def _mismatch(base: Checkpoint, edited: Checkpoint, missing: Sequence[str], extra: Sequence[str], total: int) -> str:
    if not missing:
        return f"checkpoint: {edited.path} has {len(extra)} tensors that {base.path} lacks, such as {extra[0]}"
    said = f"checkpoint: {edited.path} lacks {len(missing)} of the {total} tensors of {base.path}, such as {missing[0]}"
    if not extra:
        return said
    close = difflib.get_close_matches(missing[0], extra, n=1, cutoff=0.0)
    return f"{said}; of {len(extra)} that it has instead the closest name is {close[0]}"


def _without_prefix(names: dict[str, StoredTensor], others: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The names without a prefix that all have before the others' names; as they are where there is none."""
    if set(names) & set(others) or not others:
        return names
    ending = "." + min(others, key=len)
    prefixes = {name[: -len(ending) + 1] for name in names if name.endswith(ending)}
    for prefix in sorted(prefixes, key=len):
        if all(name.startswith(prefix) for name in names):
            return {name[len(prefix) :]: stored for name, stored in names.items()}
    return names
