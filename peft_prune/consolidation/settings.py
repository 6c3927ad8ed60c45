"""How consolidation is done, and the rules by which what is not given follows from the adapter itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..spectral import LowRankUpdate

STEP_SHARE = 0.03
"""A step moves an entry of a factor by this share of the entries' root mean square."""
LOOKS_PER_EDIT = 32
"""How often each edit is read in all."""
FEWEST_STEPS = 100
BETA = 0.75
"""Weight of the divergence from the base on retention texts."""
NEIGHBOR_BETA = 3.0
"""Weight of the divergence about neighbors."""
LOOKS_PER_TEXT = 3
"""How often each retention text is read: what is read more often is learnt by heart, and the rest forgotten."""


@dataclass(frozen=True)
class ConsolidationSettings:
    """How the effective factors are trained. What is None follows from the adapter; see `adapted`.

    Args:
        learning_rate: Of Adam on the balanced factors.
        beta: Weight of the divergence from the base on retention texts, against the edits' loss.
        neighbor_beta: The same about neighbors.
        steps: Most steps.
        edits_per_step: Edits in a step, each behind one of its contexts.
        texts_per_step: Pieces of retention text in a step.
        text_length: Tokens of a piece.
        texts: Most retention texts: how many of those given are used, and how many the model writes where none are.
        contexts: Contexts of each edit beside its bare prompt.
        phrasings: Most other prompts of each edit that the model finds, and as many of its relation.
        neighbors: Other subjects that each edit's prompt is kept for.
        neighbors_per_step: Such prompts in a step.
        keep_chat: Where edits are asked in chat, keep what the base answers there about half of the others, and to one
            retention text in four.
        margin: By how many nats the target must stand before the next best token, at each of its tokens.
        look_every: Steps between two looks at the edits and at the retention probe.
        still: Share by which the probe may still fall, against the lowest of the three looks before, where training
            ends early.
        bound: Hold the singular values within those that the restraint left; off is for comparison.
        hold_every: Steps between two projections onto that bound.
        bfloat16: Train, and let the base answer, in bfloat16 where the device has units for it; edits and the probe are
            looked at in the model's own dtype all the same.
        window: Of the edits that were consolidated before, how many are read again beside those made since, so that the
            cost does not grow with the history: training goes on from the present factors, within the bound of F(raw).
            None reads all edits and begins anew with F(raw), as it is in any case where no consolidation stands.
        seed: Of texts, contexts and batches.

    Raises:
        ValueError: A value is not accepted.
    """

    learning_rate: float | None = None
    beta: float | None = None
    neighbor_beta: float | None = None
    steps: int | None = None
    edits_per_step: int = 16
    texts_per_step: int = 8
    text_length: int = 32
    texts: int | None = None
    contexts: int = 10
    phrasings: int = 5
    neighbors: int = 12
    neighbors_per_step: int = 32
    keep_chat: bool = False
    margin: float = 1.0
    look_every: int = 20
    still: float = 0.01
    bound: bool = True
    hold_every: int = 5
    bfloat16: bool = True
    window: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "beta", "neighbor_beta"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: {value!r} must be a finite number above 0, or left out")
        for name in ("margin", "still"):
            value = getattr(self, name)
            if not (_is_number(value) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: {value!r} must be a finite number of at least 0")
        least = {"text_length": 2, "contexts": 0, "phrasings": 0, "neighbors": 0, "window": 0, "seed": 0}
        for name in (
            *("steps", "edits_per_step", "texts_per_step", "text_length", "texts", "contexts"),
            *("phrasings", "neighbors", "neighbors_per_step", "look_every", "hold_every", "window", "seed"),
        ):
            value = getattr(self, name)
            if value is None and name in ("steps", "texts", "window"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least.get(name, 1):
                raise ValueError(f"{name}: {value!r} must be an integer of at least {least.get(name, 1)}")
        for name in ("keep_chat", "bound", "bfloat16"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name}: {value!r} must be true or false")

    def for_edits(self, edits: int) -> ConsolidationSettings:
        """With the number of steps and of texts, where they are None: see `adapted`."""
        steps = self.steps or max(FEWEST_STEPS, math.ceil(edits * LOOKS_PER_EDIT / self.edits_per_step))
        texts = self.texts or math.ceil(steps * self.texts_per_step / LOOKS_PER_TEXT)
        return replace(self, steps=steps, texts=texts)

    def adapted(self, factors: Mapping[str, LowRankUpdate], edits: int) -> ConsolidationSettings:
        """With what is None filled in for an adapter.

        The learning rate is `STEP_SHARE` times the root mean square of the factors' entries, so that a small update is
        moved as gently, in proportion, as a large one. Every edit is read `LOOKS_PER_EDIT` times, in at least
        `FEWEST_STEPS` steps, and every retention text `LOOKS_PER_TEXT` times. β is `BETA`, and `NEIGHBOR_BETA` about
        neighbors.

        Args:
            factors: Balanced factors that training starts from, by module.
            edits: How many edits stand.
        """
        squares = sum(float(own.square().sum()) for update in factors.values() for own in (update.B, update.A))
        count = sum(own.numel() for update in factors.values() for own in (update.B, update.A))
        rate = STEP_SHARE * math.sqrt(squares / max(1, count))
        return replace(
            self.for_edits(edits),
            learning_rate=self.learning_rate if self.learning_rate is not None else rate,
            beta=self.beta if self.beta is not None else BETA,
            neighbor_beta=self.neighbor_beta if self.neighbor_beta is not None else NEIGHBOR_BETA,
        )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ConsolidationSettings:
        """Settings from their fields.

        Raises:
            ValueError: A field is unknown, or a value is not accepted.
        """
        known = [one.name for one in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"{name}: is no setting of consolidation; known are {', '.join(known)}")
        return cls(**values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
