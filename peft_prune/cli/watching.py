"""Guards on the command line: limits that a session watches and its history draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..requests import EditRequest

if TYPE_CHECKING:
    from ..monitoring import AbilityGuard, SessionCallback

MaxGrowth = Annotated[
    Optional[float],
    typer.Option(
        help="A limit (what is done past it: --on-limit): growth of the condition number that no layer may exceed, "
        "such as 5."
    ),
]
MaxNorm = Annotated[
    Optional[float],
    typer.Option(
        help="A limit (see --on-limit): norm of a layer's update, over the base weight's, such as 1; also where the "
        "base is singular."
    ),
]
MaxOutputChange = Annotated[
    Optional[float],
    typer.Option(
        help="A limit (see --on-limit): mean squared change of a layer's ordinary outputs, over their mean square, "
        "such as 0.1; needs second moments."
    ),
]
WatchFacts = Annotated[
    Optional[Path], typer.Option(help="Facts the base knows, whose recall is measured while editing.")
]
WatchText = Annotated[Optional[Path], typer.Option(help="Texts whose perplexity is measured while editing.")]
WatchEvery = Annotated[int, typer.Option(help="Batches between two such measurements.")]
MaxDrop = Annotated[
    Optional[float],
    typer.Option(
        help="A limit (see --on-limit): largest loss of recall or perplexity, as a share of the base's, such as 0.05."
    ),
]
OnLimit = Annotated[
    str,
    typer.Option(
        help="What to do past --max-growth, --max-norm, --max-output-change or --max-drop: warn, restrain, rollback or "
        "stop."
    ),
]

LIMITS = ("--max-growth", "--max-norm", "--max-output-change", "--max-drop")
"""The options that --on-limit speaks of."""


@dataclass(frozen=True)
class Watch:
    """What is asked to be watched.

    Args:
        max_growth: For a ConditionGuard.
        facts: File of facts for recall.
        text: File of texts for perplexity.
        every: Batches between two measurements.
        max_drop: Largest loss as a share of the base's value; None measures only.
        action: What happens past a limit.
        max_norm: For a NormGuard.
        max_output_change: For an OutputGuard.

    Raises:
        ValueError: A value is not accepted.
        InvalidRequestError: A file is malformed.
    """

    max_growth: float | None
    facts: Path | None
    text: Path | None
    every: int
    max_drop: float | None
    action: str
    max_norm: float | None = None
    max_output_change: float | None = None

    def __post_init__(self) -> None:
        from ..monitoring import ACTIONS

        if self.action not in ACTIONS:
            raise ValueError(f"on_limit: {self.action!r} is not one of {', '.join(ACTIONS)}")
        if self.every < 1:
            raise ValueError(f"watch_every: {self.every} must be at least 1")
        if self.max_drop is not None and self.facts is None and self.text is None:
            raise ValueError(f"max_drop: {self.max_drop} needs --watch-facts or --watch-text")
        if self.max_drop is not None and self.facts is not None and not self.max_drop < 1:
            raise ValueError(f"max_drop: {self.max_drop} must be below 1, recall cannot lose more than all of it")
        if self.action != "warn" and not self.watches_layers and self.max_drop is None:
            raise ValueError(f"on_limit: {self.action!r} needs a limit, {', '.join(LIMITS[:-1])} or {LIMITS[-1]}")
        self._guards(None, ())  # what is wrong shows before a model is loaded

    @property
    def watches_layers(self) -> bool:
        """Whether the figures of the layers are needed."""
        return any(limit is not None for limit in (self.max_growth, self.max_norm, self.max_output_change))

    def guards(self, model: Any, tokenizer: Any, requests: Sequence[EditRequest]) -> list[SessionCallback]:
        """The guards, with what they measure on the unedited model; facts that name an edited subject are left out.

        Raises:
            ValueError: A figure of the unedited model is none that a loss can be measured against.
        """
        from ..monitoring import AbilityGuard

        found = self._guards(tokenizer, requests)
        files = {"recall": ("watch_facts", self.facts), "perplexity": ("watch_text", self.text)}
        for guard in found:
            if isinstance(guard, AbilityGuard):
                option, file = files[guard.name]
                try:
                    guard.measure_base(model)
                except ValueError as error:
                    raise ValueError(f"{option}: {file}: {error}") from None
        return found

    def _guards(self, tokenizer: Any, requests: Sequence[EditRequest]) -> list[SessionCallback]:
        from ..evaluation import exclude_subjects, load_facts, load_texts
        from ..monitoring import ConditionGuard, NormGuard, OutputGuard

        found: list[SessionCallback] = []
        if self.max_growth is not None:
            found.append(ConditionGuard(self.max_growth, self.action))
        if self.max_norm is not None:
            found.append(NormGuard(self.max_norm, self.action))
        if self.max_output_change is not None:
            found.append(OutputGuard(self.max_output_change, self.action))
        drop = math.inf if self.max_drop is None else self.max_drop
        options: dict[str, Any] = {"every": self.every, "action": self.action}
        if self.facts is not None:
            kept = exclude_subjects(load_facts(self.facts), requests)
            if not kept:
                raise ValueError(f"watch_facts: every fact of {self.facts} names an edited subject")
            found.append(_ability_guard("recall", partial(_recall, tokenizer, kept), drop, **options))
        if self.text is not None:
            probe = partial(_perplexity, tokenizer, load_texts(self.text))
            found.append(_ability_guard("perplexity", probe, drop, **options))
        return found


def _ability_guard(name: str, probe: Callable[[Any], float], drop: float, **options: Any) -> AbilityGuard:
    from ..evaluation import kind_of
    from ..monitoring import AbilityGuard

    return AbilityGuard(probe, drop, name=name, higher_is_better=kind_of(name).higher_is_better, **options)


def _recall(tokenizer: Any, facts: Sequence[Any], model: Any) -> float:
    from ..evaluation import recall

    return recall(model, tokenizer, facts).value or 0.0


def _perplexity(tokenizer: Any, texts: Sequence[str], model: Any) -> float:
    from ..evaluation import perplexity

    return perplexity(model, tokenizer, texts)
