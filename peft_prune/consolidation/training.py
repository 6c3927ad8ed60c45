"""Consolidation: the effective factors are trained, all edits against the base's own predictions, under the restraint.

Breadth-first mini-batches over all edits at once follow LocFT-BF (ICLR 2026); that they start from a restrained sum of
edits, and stay within the singular values that the restraint left it, is PRUNE's part.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..editors.target_likelihood import frozen
from ..errors import EditFailedError
from ..models.decoder import unwrapped
from ..models.halves import Halves
from ..models.inference import input_device
from ..models.sharing import shared, sharers
from ..processes import own_share, same, summed
from ..spectral import LowRankUpdate
from ..tuner import PruneEditLayer
from .bound import Bounds, balanced
from .passages import Kinds, Passage
from .settings import ConsolidationSettings
from .tail import Tail

LARGEST_BATCH = 64
"""Passages that are looked at together."""
OFTENER = 3
"""How much oftener an edit is read that lacks its margin."""
FALL = 0.4
"""Share of the steps over which the rate falls."""
STILL_LOOKS = 4
"""Looks over which the probe must have stood still: two of them differ by chance."""


@dataclass(frozen=True)
class Material:
    """What is trained on.

    Args:
        edits: For each edit the ways in which it is asked, by kind; the first is what it is looked at by.
        texts: Pieces of retention text.
        probe: Other pieces, on which retention is looked at.
        protected: Facts with their answers, which are asked for as edits' targets are.
        neighbors: The edits' prompts about others, read where the base's answers are predicted.
    """

    edits: Sequence[Kinds]
    texts: Sequence[Passage]
    probe: Sequence[Passage]
    protected: Sequence[Passage] = ()
    neighbors: Sequence[Passage] = ()


@dataclass(frozen=True)
class Step:
    """What progress shows: the number of the step, the edits' loss and the divergences from the base, nats a token.

    About neighbors each prompt counts as much as another, however much of its answer is read.

    Args:
        number: Of the step.
        edit_loss: Mean negative log-likelihood of the edits' targets.
        divergence: KL(base ‖ edited) on retention texts.
        neighbors: The same where the base's answers about other subjects are predicted.
    """

    number: int
    edit_loss: float
    divergence: float
    neighbors: float = 0.0


@dataclass(frozen=True)
class Rows:
    """What one step reads."""

    edits: Sequence[Passage]
    texts: Sequence[Passage]
    neighbors: Sequence[Passage] = ()


@dataclass(frozen=True)
class Seen:
    """One look: each edit's margin, and the divergence from the base on the probe.

    Args:
        step: Steps done.
        margins: By how many nats the target stands before the next best token, at its weakest token.
        divergence: KL(base ‖ edited), nats a token.
    """

    step: int
    margins: tuple[float, ...]
    divergence: float

    @property
    def held(self) -> int:
        """How many edits' targets are the most probable tokens."""
        return sum(margin > 0 for margin in self.margins)


@dataclass(frozen=True, eq=False)
class Trained:
    """What training gave.

    Args:
        factors: By module.
        settings: With what was filled in.
        seen: All looks, the first before the first step, the last at ``factors``.
    """

    factors: dict[str, LowRankUpdate]
    settings: ConsolidationSettings
    seen: tuple[Seen, ...]


Progress = Callable[[Step], None]


def train(
    model: Any,
    layers: Mapping[str, PruneEditLayer],
    start: Mapping[str, LowRankUpdate],
    limit: Mapping[str, LowRankUpdate],
    material: Material,
    settings: ConsolidationSettings,
    progress: Progress | None = None,
) -> Trained:
    """Train the factors of the adapted layers, beginning with ``start``; the adapter itself is not touched.

    Args:
        model: The PEFT model.
        layers: Its adapted layers by their name in the base.
        start: What training begins with, by module.
        limit: F(raw), whose singular values bound what comes out, by module.
        material: What is trained on.
        settings: What is None in them is adapted.
        progress: Called after every step.

    Raises:
        EditFailedError: The loss is NaN or Inf.
    """
    work = _Training(model, layers, start, limit, material, settings)
    with frozen(model):
        return work.run(progress)


@dataclass
class _Training:
    model: Any
    layers: Mapping[str, PruneEditLayer]
    start: Mapping[str, LowRankUpdate]
    limit: Mapping[str, LowRankUpdate]
    material: Material
    settings: ConsolidationSettings
    _base: dict[Passage, Tensor] = field(default_factory=dict)
    _behind: list[int] = field(default_factory=list)

    def run(self, progress: Progress | None) -> Trained:
        self.tail = Tail(self.model, self.layers)
        precision: Callable[[], AbstractContextManager[None]] = nullcontext
        if self.settings.bfloat16:
            precision = Halves(self.tail.modules, input_device(self.model)).acting
        self.factors = {name: balanced(update) for name, update in self.start.items()}
        bounds = Bounds(self.limit if self.settings.bound else {}, self.layers)
        if self.start is not self.limit:  # what is lost by coming within the bound is no loss by training
            bounds.settle(self.factors)
        seen = [self._look(0)]
        if not torch.isfinite(torch.tensor([*seen[0].margins, seen[0].divergence])).all():
            raise EditFailedError(
                "consolidation: the model gives NaN or Inf before the first step; nothing has changed"
            )
        own = self.settings = self.settings.adapted(self.factors, len(self.material.edits))
        assert own.steps is not None and own.learning_rate is not None
        batches = self._batches()
        with self._trained() as parameters:
            optimizer = torch.optim.Adam(parameters, lr=own.learning_rate)
            number, end = 0, own.steps
            while number < end:
                number += 1
                for group in optimizer.param_groups:
                    group["lr"] = own.learning_rate * share_of_rate(number, end)
                rows = next(batches)
                mine = self._own(rows)
                self.tail.remember([*mine.edits, *mine.texts, *mine.neighbors])
                with precision():
                    step = self._step(number, rows, mine, optimizer)
                if progress is not None:
                    progress(step)
                if number % own.hold_every == 0:
                    bounds.hold(self.factors)
                if number == end or number % own.look_every == 0:
                    bounds.settle(self.factors)
                    self._agree()
                    seen.append(self._look(number))
                    # devices that differ may see the last bits otherwise, and all processes must end together
                    if same("the end of training", lambda: self._is_still(seen)):
                        # the rate falls now: what it still gives at its height, it loses again
                        end = max(number, min(end, math.ceil(number / (1 - FALL))))
        return Trained({name: _detached(update) for name, update in self.factors.items()}, own, tuple(seen))

    @contextmanager
    def _trained(self) -> Iterator[list[Tensor]]:
        parameters = [own for update in self.factors.values() for own in (update.B, update.A)]
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            yield parameters
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    def _step(self, number: int, rows: Rows, mine: Rows, optimizer: torch.optim.Optimizer) -> Step:
        """One step; where processes share its rows out, on the sum of what each has found of its own ones."""
        # apart, since edits and pieces of text differ in length and padding costs as much as tokens
        edit_loss = self._loss(_target_loss, mine.edits, len(mine.edits) / max(1, len(rows.edits)))
        divergence = self._loss(self._divergence, mine.texts, _places(mine.texts) / max(1, _places(rows.texts)))
        beside = self._loss(self._mean_divergence, mine.neighbors, len(mine.neighbors) / max(1, len(rows.neighbors)))
        own = self.settings
        loss = edit_loss + (own.beta or 0.0) * divergence + (own.neighbor_beta or 0.0) * beside
        optimizer.zero_grad()
        if loss.requires_grad:  # a process may have no row of it
            loss.backward()
        losses = torch.tensor([float(one.detach()) for one in (edit_loss, divergence, beside)], dtype=torch.float64)
        if self._is_shared:
            self._add_up(losses, optimizer)
        if not bool(torch.isfinite(losses).all()):
            raise EditFailedError(
                f"consolidation: the loss of step {number} is NaN or Inf, so nothing has changed; take a smaller "
                "learning_rate"
            )
        optimizer.step()
        return Step(number, *losses.tolist())

    def _loss(self, of: Callable[[Tensor, Sequence[Passage]], Tensor], own: Sequence[Passage], share: float) -> Tensor:
        """A mean over this process's rows, weighted so that the sum over all processes is that over all rows."""
        return of(self.tail.logits(own, self.factors), own) * share if own else torch.zeros(())

    def _own(self, rows: Rows) -> Rows:
        if not self._is_shared:
            return rows
        return Rows(own_share(rows.edits), own_share(rows.texts), own_share(rows.neighbors))

    def _add_up(self, losses: Tensor, optimizer: torch.optim.Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        reached = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = {f"gradient {index}": parameter.grad for index, parameter in enumerate(parameters)}
        summed("a step of consolidation", {"losses": losses, "reached": reached, **gradients}, 0)
        for parameter, count in zip(parameters, reached.tolist(), strict=True):
            if not count:  # Adam leaves alone what has no gradient, such as an expert that no row has reached
                parameter.grad = None

    def _agree(self) -> None:
        """Take rank 0's factors: the last bits of a projection may part those of unlike devices."""
        if not self._is_shared:
            return
        own = {name: (update.B.detach(), update.A.detach()) for name, update in self.factors.items()}
        first = same("the factors of a consolidation", lambda: own)
        for name, (B, A) in own.items():
            B.copy_(first[name][0])
            A.copy_(first[name][1])

    @cached_property
    def _is_shared(self) -> bool:
        """Whether each of several processes has the whole model, so that they share out the rows of a step."""
        return sharers(self.model) > 1

    def _batches(self) -> Iterator[Rows]:
        """What each step reads: all edits before any of them comes again, each in the next kind of way.

        Of those that lacked their margin when they were looked at last, `OFTENER` times as much is read.
        """
        own, draw, given = self.settings, random.Random(self.settings.seed), self.material
        rows = [_in_rotation(edit, draw) for edit in [*given.edits, *([[fact]] for fact in given.protected)]]
        edits = self._rounds(len(rows), draw)
        texts, neighbors = _in_turn(given.texts, draw), _in_turn(given.neighbors, draw)
        while True:
            chosen = []
            for _ in range(min(own.edits_per_step, len(rows))):
                chosen.append(next(rows[next(edits)]))
            yield Rows(
                chosen,
                list(islice(texts, min(own.texts_per_step, len(given.texts)))),
                list(islice(neighbors, min(own.neighbors_per_step, len(given.neighbors)))),
            )

    def _rounds(self, count: int, draw: random.Random) -> Iterator[int]:
        while True:
            order = [*range(count), *self._behind * (OFTENER - 1)]
            draw.shuffle(order)
            yield from order

    @torch.no_grad()
    def _look(self, step: int) -> Seen:
        factors = {name: _detached(update) for name, update in self.factors.items()}

        def margins_of(passages: Sequence[Passage]) -> list[float]:
            parts = [_margins(self.tail.logits(part, factors), part) for part in _parts(passages)]
            return [margin for part in parts for margin in part]

        def divergences_of(passages: Sequence[Passage]) -> list[float]:
            found: list[float] = []
            for part in _parts(passages):
                values = self._divergences(self.tail.logits(part, factors), part)
                found += [float(own.sum()) for own in values.split([len(passage.read) for passage in part])]
            return found

        margins = self._spread("margins", [edit[0][0] for edit in self.material.edits], margins_of)
        if step:
            self._behind = [index for index, margin in enumerate(margins) if margin < self.settings.margin]
        divergences = self._spread("the probe", self.material.probe, divergences_of)
        return Seen(step, tuple(margins), sum(divergences) / _places(self.material.probe))

    def _spread(
        self, what: str, passages: Sequence[Passage], work: Callable[[Sequence[Passage]], list[float]]
    ) -> list[float]:
        return shared(unwrapped(self.model), f"consolidation: {what}", passages, work)

    def _mean_divergence(self, logits: Tensor, passages: Sequence[Passage]) -> Tensor:
        """KL(base ‖ edited), the mean over these passages of the mean over each one's places."""
        parts = self._divergences(logits, passages).split([len(passage.read) for passage in passages])
        return torch.stack([part.mean() for part in parts]).mean()

    def _divergence(self, logits: Tensor, texts: Sequence[Passage]) -> Tensor:
        """KL(base ‖ edited), the mean over all places of these texts."""
        return self._divergences(logits, texts).mean()

    def _divergences(self, logits: Tensor, texts: Sequence[Passage]) -> Tensor:
        """KL(base ‖ edited) at each place of these texts."""
        missing = [text for text in texts if text not in self._base]
        if missing:
            states = self.tail.states(missing, None)
            lengths = [len(text.read) for text in missing]
            self._base |= dict(zip(missing, states.split(lengths), strict=True))
        base = torch.log_softmax(self.tail.logits_of(torch.cat([self._base[text] for text in texts])), dim=-1)
        own = torch.log_softmax(logits, dim=-1)
        return (base.exp() * (base - own)).sum(-1)

    def _is_still(self, seen: Sequence[Seen]) -> bool:
        """Whether every edit holds with its margin and the probe stands still."""
        if len(seen) <= STILL_LOOKS or min(seen[-1].margins) < self.settings.margin:
            return False
        *before, now = (one.divergence for one in seen[-STILL_LOOKS:])
        return now > (1 - self.settings.still) * min(before)


def share_of_rate(number: int, steps: int) -> float:
    """Part of the learning rate: rising over the first twentieth, falling to a tenth over the last 40 %."""
    rise = max(1, steps // 20)
    return min(1.0, number / rise, 0.1 + 0.9 * (1 - number / steps) / FALL)


def _target_loss(logits: Tensor, passages: Sequence[Passage]) -> Tensor:
    """Mean over the passages of the mean negative log-likelihood of each one's tokens."""
    labels = torch.tensor([label for passage in passages for label in passage.labels], device=logits.device)
    weights = torch.tensor(
        [1 / len(passage.labels) for passage in passages for _ in passage.labels], device=logits.device
    )
    scores = torch.log_softmax(logits, dim=-1).gather(1, labels[:, None])[:, 0]
    return -(scores * weights).sum() / len(passages)


def _margins(logits: Tensor, passages: Sequence[Passage]) -> list[float]:
    labels = torch.tensor([label for passage in passages for label in passage.labels], device=logits.device)
    target = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return [float(part.min()) for part in (target - others).split([len(passage.labels) for passage in passages])]


def _places(passages: Sequence[Passage]) -> int:
    return sum(len(passage.read) for passage in passages)


def _parts(passages: Sequence[Passage]) -> Iterator[Sequence[Passage]]:
    for start in range(0, len(passages), LARGEST_BATCH):
        yield passages[start : start + LARGEST_BATCH]


def _endless(count: int, draw: random.Random) -> Iterator[int]:
    """All numbers below ``count`` in random order, again and again."""
    while count:
        order = list(range(count))
        draw.shuffle(order)
        yield from order


def _in_rotation(kinds: Kinds, draw: random.Random) -> Iterator[Passage]:
    """One passage of each kind before any kind comes again, so that each is read as often as the others."""
    turns = [_in_turn(kind, draw) for kind in draw.sample(kinds, len(kinds))]
    while True:
        for turn in turns:
            yield next(turn)


def _in_turn(passages: Sequence[Passage], draw: random.Random) -> Iterator[Passage]:
    return (passages[index] for index in _endless(len(passages), draw))


def _detached(update: LowRankUpdate) -> LowRankUpdate:
    return LowRankUpdate(update.B.detach(), update.A.detach())
