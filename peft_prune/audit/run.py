"""Audit checkpoints that were edited or fine-tuned by any tool, against their base."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .compare import BaseMatrix, MatrixChange, OtherChange, compare_matrix, compare_other, differs
from .matching import Matching, Pair, match
from .structure import Structure

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CheckpointAudit:
    """One checkpoint of the series.

    Args:
        path: Where it lies.
        matrices: Changed matrices by name.
        others: Other changed tensors by name.
        unchanged: How many tensors are the base's.
        reshaped: Tensors of another shape, which were not compared, with both shapes.
        ignored: Tensors that are no parameters of the model.
    """

    path: str
    matrices: Mapping[str, MatrixChange]
    others: Mapping[str, OtherChange]
    unchanged: int
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    ignored: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its folder's or file's name."""
        return Path(self.path).name

    @property
    def worst(self) -> MatrixChange | None:
        """The matrix whose condition number has grown most."""
        return max(self.matrices.values(), key=lambda one: one.growth, default=None)

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON; the matrices with ``growth`` and ``relative_norm``."""
        return {
            "path": self.path,
            "unchanged": self.unchanged,
            "matrices": {
                name: asdict(one) | {"growth": one.growth, "relative_norm": one.relative_norm}
                for name, one in self.matrices.items()
            },
            "others": {name: asdict(one) for name, one in self.others.items()},
            "reshaped": {name: [list(shape) for shape in shapes] for name, shapes in self.reshaped.items()},
            "ignored": list(self.ignored),
        }


@dataclass(frozen=True)
class Audit:
    """A base and a series of checkpoints.

    Args:
        base: Where the base lies.
        series: The checkpoints in the order in which they were given.
    """

    base: str
    series: tuple[CheckpointAudit, ...]

    @property
    def changed(self) -> list[str]:
        """Every matrix that differs in some checkpoint, in the base's order."""
        return list(dict.fromkeys(name for one in self.series for name in one.matrices))

    def growth(self, name: str) -> list[float]:
        """κ(W1) / κ(W0) of a matrix over the series, 1 where it has not changed."""
        return [one.matrices[name].growth if name in one.matrices else 1.0 for one in self.series]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {"base": self.base, "checkpoints": [one.to_json() for one in self.series]}


def audit(
    base: str | Path, edited: Sequence[str | Path], *, only: str | None = None, progress: Progress | None = None
) -> Audit:
    """Compare checkpoints with their base, tensor by tensor, without loading a model.

    Every tensor is read strip by strip, so memory does not grow with the model: see `compare_matrix` for what one
    matrix takes. A changed matrix costs three eigenvalue problems of its shorter side (two from the second checkpoint
    on); an unchanged tensor costs reading it.

    Args:
        base: Folder or safetensors file of the model from before.
        edited: Those from after, in the order of the series.
        only: Regular expression; only tensors whose name it matches somewhere are compared.
        progress: Called with the name of the tensor, the number done and their total.

    Raises:
        CheckpointError: A checkpoint is missing, damaged, pickled or quantized, or names do not match.
        ValueError: ``only`` is no regular expression or matches nothing, or a weight is NaN or Inf.
    """
    before = Checkpoint.open(base)
    after = [Checkpoint.open(path) for path in edited]
    if not after:
        raise ValueError("edited: is empty, at least one checkpoint is needed")
    structure = structure_of(before)
    matchings = [match(before, one, structure) for one in after]
    names = _chosen([pair.name for pair in matchings[0].pairs], only)
    pairs = [{pair.name: pair for pair in matching.pairs} for matching in matchings]
    found = [_Found() for _ in after]
    for index, name in enumerate(names):
        known = BaseMatrix()
        for own, result in zip(pairs, found, strict=True):
            if name in own:
                _look(own[name], known, result)
        if progress is not None:
            progress(name, index + 1, len(names))
    return Audit(
        str(base),
        tuple(_result(one, matching, result) for one, matching, result in zip(after, matchings, found, strict=True)),
    )


def structure_of(checkpoint: Checkpoint) -> Structure | None:
    """What the checkpoint's configuration describes; None, with a warning, where that is no causal language model."""
    try:
        return Structure.of(checkpoint)
    except CheckpointError as error:
        warnings.warn(f"{error}; tensors are matched by their names alone")
        return None


class _Found:
    def __init__(self) -> None:
        self.matrices: dict[str, MatrixChange] = {}
        self.others: dict[str, OtherChange] = {}
        self.unchanged = 0


def _look(pair: Pair, known: BaseMatrix, found: _Found) -> None:
    try:
        if not differs(pair):
            found.unchanged += 1
        elif pair.base.dtype is None or pair.edited.dtype is None:
            raise CheckpointError(
                f"checkpoint: {pair.name} differs and is no floating-point tensor of 16, 32 or 64 bits, which alone "
                "can be audited"
            )
        elif len(pair.base.shape) == 2 and min(pair.base.shape) > 1:
            found.matrices[pair.name] = compare_matrix(pair, known)
        else:
            found.others[pair.name] = compare_other(pair)
    except CheckpointError:
        raise
    except ValueError as error:
        raise ValueError(f"{pair.name}: {error}") from None


def _result(checkpoint: Checkpoint, matching: Matching, found: _Found) -> CheckpointAudit:
    return CheckpointAudit(
        str(checkpoint.path), found.matrices, found.others, found.unchanged, matching.reshaped, matching.ignored
    )


def _chosen(names: Sequence[str], only: str | None) -> list[str]:
    if only is None:
        return list(names)
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise ValueError(f"only: {only!r} is no regular expression: {error}") from None
    chosen = [name for name in names if pattern.search(name)]
    if not chosen:
        raise ValueError(f"only: {only!r} matches none of {len(names)} tensors, such as {names[0]}")
    return chosen


def total_change(found: CheckpointAudit) -> float:
    """Euclidean norm of the whole difference."""
    squares = [one.delta_frobenius_norm**2 for one in found.matrices.values()]
    return math.sqrt(sum(squares) + sum(one.delta_norm**2 for one in found.others.values()))
