"""Audit checkpoints that were edited or fine-tuned by any tool, against their base."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .compare import BaseMatrix, MatrixChange, OtherChange, compare_matrix, compare_other, look
from .matching import Matching, Pair, match
from .structure import Structure

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CheckpointAudit:
    """One checkpoint of the series.

    Args:
        path: Where it lies.
        given: The name under which it was asked for.
        matrices: Changed matrices by name.
        others: Other changed tensors by name.
        not_finite: Elements that are NaN or Inf before and after, of tensors that have any; these are not compared.
        unchanged: How many tensors are the base's.
        reshaped: Tensors of another shape, which are not compared, with both shapes.
        ignored: Masks and position tables.
    """

    path: str
    given: str
    matrices: Mapping[str, MatrixChange]
    others: Mapping[str, OtherChange]
    not_finite: Mapping[str, tuple[int, int]]
    unchanged: int
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    ignored: tuple[str, ...]

    @property
    def changed(self) -> int:
        """How many tensors are not the base's, as far as that can be told."""
        return len(self.matrices) + len(self.others) + len(self.not_finite) + len(self.reshaped)

    @property
    def worst(self) -> MatrixChange | None:
        """The matrix whose condition number has grown most; None where none has one that can grow."""
        known = [one for one in self.matrices.values() if not math.isnan(one.growth)]
        return max(known, key=lambda one: one.growth, default=None)

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON; the matrices with ``growth`` and ``relative_norm``."""
        return {
            "path": self.path,
            "given": self.given,
            "unchanged": self.unchanged,
            "matrices": {
                name: asdict(one) | {"growth": one.growth, "relative_norm": one.relative_norm}
                for name, one in self.matrices.items()
            },
            "others": {name: asdict(one) for name, one in self.others.items()},
            "not_finite": {name: list(counts) for name, counts in self.not_finite.items()},
            "reshaped": {name: [list(shape) for shape in shapes] for name, shapes in self.reshaped.items()},
            "ignored": list(self.ignored),
        }


@dataclass(frozen=True)
class Audit:
    """A base and a series of checkpoints.

    Args:
        base: The name under which the base was asked for.
        series: The checkpoints in the order in which they were given.
        only: What was compared, where that was not everything.
        notes: What a reader must know of how it was done, one sentence each.
    """

    base: str
    series: tuple[CheckpointAudit, ...]
    only: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> list[str]:
        """Every matrix that differs in some checkpoint, in the base's order."""
        return list(dict.fromkeys(name for one in self.series for name in one.matrices))

    def growth(self, name: str) -> list[float]:
        """κ(W1) / κ(W0) of a matrix over the series, 1 where it has not changed."""
        return [one.matrices[name].growth if name in one.matrices else 1.0 for one in self.series]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        checkpoints = [one.to_json() for one in self.series]
        return {"base": self.base, "only": self.only, "notes": list(self.notes), "checkpoints": checkpoints}


def audit(
    base: Checkpoint | str | Path,
    edited: Sequence[Checkpoint | str | Path],
    *,
    only: str | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Compare checkpoints with their base, tensor by tensor, without loading a model.

    Every tensor is read strip by strip, so memory does not grow with the model: see `compare_matrix` for what one
    matrix takes. A changed matrix costs three eigenvalue problems of its shorter side (two from the second checkpoint
    on); an unchanged tensor costs reading it.

    Args:
        base: Folder or safetensors file of the model from before, or the checkpoint itself.
        edited: Those from after, in the order of the series.
        only: Regular expression; only tensors whose name it matches somewhere are compared.
        progress: Called with the name of the tensor, the number done and their total.

    Raises:
        CheckpointError: A checkpoint is missing, damaged, pickled or quantized, or names do not match.
        ValueError: ``only`` is no regular expression or matches nothing.
    """
    pattern = _pattern(only)
    before = _opened(base)
    after = [_opened(one) for one in edited]
    if not after:
        raise ValueError("edited: is empty, at least one checkpoint is needed")
    structure, notes = _structure(before)
    matchings = [match(before, one, structure) for one in after]
    pairs = [{pair.name: pair for pair in matching.pairs} for matching in matchings]
    names = _chosen(list(dict.fromkeys(name for own in pairs for name in own)), only, pattern)
    found = [_Found() for _ in after]
    for index, name in enumerate(names):
        known = BaseMatrix()
        for own, result in zip(pairs, found, strict=True):
            if name in own:
                _look(own[name], known, result)
        if progress is not None:
            progress(name, index + 1, len(names))
    series = [_result(one, matching, result) for one, matching, result in zip(after, matchings, found, strict=True)]
    parts = [_part(before, one, matching) for one, matching in zip(after, matchings, strict=True) if matching.apart]
    return Audit(before.given, tuple(series), only, (*notes, *parts))


def total_change(found: CheckpointAudit) -> float:
    """Euclidean norm of the whole difference, as far as it was compared; NaN where something is not finite."""
    if found.not_finite:
        return math.nan
    squares = [one.delta_frobenius_norm**2 for one in found.matrices.values()]
    return math.sqrt(sum(squares) + sum(one.delta_norm**2 for one in found.others.values()))


def _opened(given: Checkpoint | str | Path) -> Checkpoint:
    return given if isinstance(given, Checkpoint) else Checkpoint.open(given)


def _structure(checkpoint: Checkpoint) -> tuple[Structure | None, tuple[str, ...]]:
    """What the checkpoint's configuration describes; None, with a note, where that is no causal language model."""
    try:
        return Structure.of(checkpoint), ()
    except CheckpointError as error:
        said = str(error).removeprefix("checkpoint: ")
        return None, (f"{said}; tensors were matched by their names alone.",)


def _part(base: Checkpoint, edited: Checkpoint, matching: Matching) -> str:
    """A note that one checkpoint is a part of the other."""
    whole, part = (base, edited) if len(base.tensors) > len(edited.tensors) else (edited, base)
    others = f"{len(matching.apart)} tensors that it has besides, such as {matching.apart[0]}, were not compared"
    return f"{part.given} is a part of {whole.given}, and was compared under their common names; {others}."


@dataclass
class _Found:
    matrices: dict[str, MatrixChange] = field(default_factory=dict)
    others: dict[str, OtherChange] = field(default_factory=dict)
    not_finite: dict[str, tuple[int, int]] = field(default_factory=dict)
    unchanged: int = 0


def _look(pair: Pair, known: BaseMatrix, found: _Found) -> None:
    if pair.base.kind != pair.edited.kind and not (pair.base.is_weight and pair.edited.is_weight):
        raise CheckpointError(_not_comparable(pair))
    seen = look(pair)
    if any(seen.not_finite):
        found.not_finite[pair.name] = seen.not_finite
    elif not seen.differs:
        found.unchanged += 1
    elif not pair.base.is_weight:
        raise CheckpointError(_not_comparable(pair))
    elif len(pair.base.shape) == 2 and min(pair.base.shape) > 1:
        found.matrices[pair.name] = compare_matrix(pair, known)
    else:
        found.others[pair.name] = compare_other(pair)


def _not_comparable(pair: Pair) -> str:
    return (
        f"checkpoint: {pair.name} is stored as {pair.base.kind} in {pair.base.file} and as {pair.edited.kind} in "
        f"{pair.edited.file}; F64, F32, F16 and BF16 can be compared"
    )


def _result(checkpoint: Checkpoint, matching: Matching, found: _Found) -> CheckpointAudit:
    return CheckpointAudit(
        path=str(checkpoint.path),
        given=checkpoint.given,
        matrices=found.matrices,
        others=found.others,
        not_finite=found.not_finite,
        unchanged=found.unchanged,
        reshaped=matching.reshaped,
        ignored=matching.ignored,
    )


def _pattern(only: str | None) -> re.Pattern[str] | None:
    try:
        return None if only is None else re.compile(only)
    except re.error as error:
        raise ValueError(f"only: {only!r} is no regular expression: {error}") from None


def _chosen(names: Sequence[str], only: str | None, pattern: re.Pattern[str] | None) -> list[str]:
    chosen = [name for name in names if pattern is None or pattern.search(name)]
    if not chosen:
        raise ValueError(f"only: {only!r} matches none of {len(names)} tensors, such as {names[0]}")
    return chosen
