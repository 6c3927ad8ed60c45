"""What a layer remembers of an adapter beside its factors, and how a change of the factors is noticed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..spectral import GrownGram, LowRankUpdate, accumulated
from .config import PruneEditConfig


@dataclass(frozen=True, eq=False)
class Around:
    """A raw sum around which figures are taken.

    Args:
        sum: The raw sum at that moment.
        before: Tells the one it took the place of, where there was one.
        moved: What the sum has more than that one's.
        mark: Tells it from others, without holding its sum.
    """

    sum: LowRankUpdate
    before: object = None
    moved: LowRankUpdate | None = None
    mark: object = field(default_factory=object)


@dataclass
class AccumulatedUpdate:
    """What a layer knows of one adapter beyond its effective factors.

    Args:
        raw: The accumulated update as the edits made it, float32, without what is `unsummed`; None while the effective
            factors are the raw ones.
        unsummed: What was added since; a large sum is written anew only where somebody asks for it.
        acting: What the effective factors are rounded from where their dtype is narrower than float32, so that no
            number of edits rounds them more than once; None otherwise.
        raw_lost: The factors were loaded already restrained, so the raw ones are known to the history alone.
        edits: Number of edits in the update.
        pending: Number of edits (or, after training, 1) that the restraint has not seen yet.
        checksum: Of the effective factors as they were last set, by which later training is noticed.
        watched: Training makes the restraint pending: it has acted before, or acts on training as well.
        trained: The factors hold training that no edit has made.
        consolidated: Number of edits in the update when its effective factors were consolidated; 0 where they are not.
        gram: Gram matrix of the raw sum on the shorter side, which the next restraint of a large rank needs.
        change: Effective minus raw sum as factors; None where that is not known.
        reference: The raw sum at an earlier moment.
        since: What was added to the raw sum since then.
        fresh: Under the schedule "compensated", what the next restraint acts on: what was added since the last one,
            with what that one took. None where nothing was.
        owed: Under that schedule, what the last restraint took and the next edit puts back; None where nothing is.
    """

    raw: LowRankUpdate | None = None
    unsummed: LowRankUpdate | None = None
    acting: LowRankUpdate | None = None
    raw_lost: bool = False
    edits: int = 0
    pending: int = 0
    checksum: tuple[torch.dtype, int, int] | None = None
    watched: bool = False
    trained: bool = False
    consolidated: int = 0
    gram: GrownGram | None = None
    change: LowRankUpdate | None = None
    reference: Around | None = None
    since: LowRankUpdate | None = None
    fresh: LowRankUpdate | None = None
    owed: LowRankUpdate | None = None

    def raw_sum(self) -> LowRankUpdate | None:
        """The accumulated update as the edits made it; None while the effective factors are the raw ones."""
        if self.raw is not None and self.unsummed is not None:
            self.raw = accumulated(self.raw, self.unsummed)
        self.unsummed = None
        return self.raw

    def add(self, update: LowRankUpdate) -> None:
        """Note a new update beside the effective factors, which hold it already."""
        if self.raw is not None:
            self.unsummed = update if self.unsummed is None else self.unsummed.append(update)
        self.gram = None if self.gram is None else self.gram.added(update)
        self.since = None if self.since is None else self.since.append(update)

    def forget(self) -> None:
        """The effective factors are the raw ones from here on."""
        self.raw = self.unsummed = self.gram = self.change = self.reference = self.since = None
        self.fresh = self.owed = None
        self.consolidated = 0


@dataclass(frozen=True)
class LayerState:
    """One adapter of one layer at one moment: effective factors, what is known beside them, and a checksum."""

    effective: LowRankUpdate
    update: AccumulatedUpdate
    checksum: tuple[torch.dtype, int, int] | None


def checksum(update: LowRankUpdate) -> tuple[torch.dtype, int, int] | None:
    """Dtype and sums of the bits of both factors, by which any change is noticed; None where they are not at hand."""
    if update.B.is_meta or update.A.is_meta:
        return None
    return update.dtype, sum_of_bits(update.B), sum_of_bits(update.A)


def sum_of_bits(values: Tensor) -> int:
    """Sum of the bits of a tensor, read as integers: any change of a value changes it."""
    # sums of integers wrap around, so they are the same in any order and on any device; words of eight bytes are summed
    # several times as fast as smaller ones, which would be widened first
    values = values.contiguous().view(-1)
    words = values.numel() * values.element_size() // 8 * 8 // values.element_size()
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    rest = int(values[words:].view(integer).sum(dtype=torch.int64))
    return rest + (int(values[:words].view(torch.int64).sum()) if words else 0)


def trained_pending(config: PruneEditConfig) -> int:
    """What is pending for factors that hold no edit, only training: the other schedules count edits."""
    return 1 if config.restrain_on == "merge" else 0
