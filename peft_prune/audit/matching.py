"""Which tensor of an edited checkpoint belongs to which of the base."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import CheckpointError
from .checkpoint import Checkpoint, StoredTensor
from .structure import Structure, without_wrappers

_TABLES = re.compile(
    r"(^|\.)(attn\.(bias|masked_bias)|attention\.(bias|masked_bias)|masked_bias|causal_mask|attn_mask"
    r"|(rotary_emb\.)?(original_)?inv_freq|rotary_emb\.(cos|sin)_cached|position_ids|embed_positions\.weights)$"
)
"""Masks and position tables, which older checkpoints hold and newer ones make themselves."""


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
        pairs: In the base's order; a tied tensor that only one of them stores is compared with the one it is tied to,
            and one that both tie is there once.
        reshaped: Names with the shapes before and after, which cannot be compared.
        ignored: Masks and position tables.
        apart: Where one checkpoint is a part of the other, as the text model of a multimodal one is, what the other has
            besides.
    """

    pairs: tuple[Pair, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    ignored: tuple[str, ...]
    apart: tuple[str, ...] = ()


def match(base: Checkpoint, edited: Checkpoint, structure: Structure | None) -> Matching:
    """Pair the tensors of two checkpoints.

    Args:
        base: Before.
        edited: After.
        structure: The base's model; without it names must agree up to wrappers and a prefix of all.

    Raises:
        CheckpointError: A weight is in one of them alone; the message names it and the closest name.
    """
    before, after = canonical_tensors(base, structure), canonical_tensors(edited, structure)
    if structure is None:
        before, after = _without_prefix(before, after), _without_prefix(after, before)
    else:
        both_tie = set(structure.tied_in(before)) & set(structure.tied_in(after))
        ties = [(name, structure.tied[name]) for name in structure.tied]
        _complete(before, after, ties)
        _complete(after, before, ties)
        for name, target in ties:
            if name in both_tie and target in before and target in after:
                before.pop(name, None)
                after.pop(name, None)
    ignored = [name for name in dict.fromkeys((*before, *after)) if _is_table(name, structure)]
    for name in ignored:
        before.pop(name, None)
        after.pop(name, None)
    before, after, apart = _common_part(before, after)
    missing = [name for name in before if name not in after]
    extra = [name for name in after if name not in before]
    if missing or extra:
        raise CheckpointError(_mismatch(base, edited, missing, extra, len(before)))
    reshaped = {name: (one.shape, after[name].shape) for name, one in before.items() if one.shape != after[name].shape}
    pairs = tuple(Pair(name, one, after[name]) for name, one in before.items() if name not in reshaped)
    if not pairs:
        raise CheckpointError(f"checkpoint: no tensor of {edited.given} has the shape that it has in {base.given}")
    return Matching(pairs, reshaped, tuple(ignored), apart)


def canonical_tensors(checkpoint: Checkpoint, structure: Structure | None) -> dict[str, StoredTensor]:
    """A checkpoint's tensors by the model's own names, where it has one for them.

    Raises:
        CheckpointError: Two tensors have the same name once wrappers are off.
    """
    found: dict[str, StoredTensor] = {}
    for name, stored in checkpoint.tensors.items():
        own = without_wrappers(name) if structure is None else structure.canonical(name)
        if own in found:
            twice = f"as {found[own].key} and as {name}"
            raise CheckpointError(f"checkpoint: {checkpoint.given} holds {own} twice, {twice}")
        found[own] = stored
    return found


def _is_table(name: str, structure: Structure | None) -> bool:
    # a parameter of that name is a weight: GPT-2's mask and some models' attention have a bias called alike
    return _TABLES.search(name) is not None and (structure is None or name not in structure.parameters)


def _complete(own: dict[str, StoredTensor], other: Mapping[str, StoredTensor], ties: Sequence[tuple[str, str]]) -> None:
    """Add the tied tensors that only the other checkpoint stores, as the ones they are tied to, and the other way."""
    for name, target in ties:
        for one, source in ((name, target), (target, name)):
            if one in other and one not in own and source in own:
                own[one] = own[source]


def _common_part(
    before: dict[str, StoredTensor], after: dict[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor], tuple[str, ...]]:
    """Both by the base's names where one of them is a part of the other, with the names of the rest; else as given."""
    common = {name: before[name] for name in before if name in after}
    own, other = ({n: t for n, t in side.items() if n not in common} for side in (before, after))
    for small, large, is_base in ((other, own, False), (own, other, True)):
        if not small or len(small) >= len(large):
            continue
        longest = max(small, key=len)
        for prefix in [name[: -len(longest)] for name in large if name.endswith("." + longest)]:
            if all(prefix + name in large for name in small):
                used = {prefix + name: stored for name, stored in small.items()}
                apart = tuple(name for name in large if name not in used)
                part = {name: large[prefix + name] for name in small}
                shared = {name: after[name] for name in common}
                if is_base:
                    return before, shared | part, apart
                return common | {prefix + name: stored for name, stored in part.items()}, shared | used, apart
    return before, after, ()


def _mismatch(base: Checkpoint, edited: Checkpoint, missing: Sequence[str], extra: Sequence[str], total: int) -> str:
    if not missing:
        return f"checkpoint: {edited.given} has {len(extra)} tensors that {base.given} lacks, such as {extra[0]}"
    amount = f"{len(missing)} of the {total} tensors"
    said = f"checkpoint: {edited.given} lacks {amount} of {base.given}, such as {missing[0]}"
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
