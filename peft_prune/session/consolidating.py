"""Consolidation in a session: on demand, on the schedule, and again where something has taken it away."""

from __future__ import annotations

import dataclasses
import math
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..consolidation import ConsolidationSettings, Step, consolidate
from ..errors import SessionStateError
from ..moving import moving_bar
from ..processes import same
from ..spectral import LowRankUpdate
from .consolidations import ConsolidationRecord
from .records import LOST, EditRecord
from .replay import set_consolidated
from .workspace import Workspace

GOES_ON = 5
"""Where edits that were not reached are rolled out, training goes on for one in so many of its steps."""
NAMED = 3
"""Edits that are named in a warning before the rest is counted."""


@dataclass(frozen=True)
class ConsolidationResult:
    """What a consolidation did.

    Args:
        edits: Numbers of the edits that were read: all that stand, but where the settings' ``window`` takes some.
        steps: Steps done.
        margins: By how many nats each edit's target stands before the next best token, by number of the edit; below 0
            the bound did not let it be reached.
        margins_before: The same of what training began with, F(raw) or the factors that stood.
        divergence: KL(base ‖ edited) on the retention probe, nats a token.
        divergence_before: The same of what training began with.
        settings: With what was filled in.
        seconds: What it took.
    """

    edits: tuple[int, ...]
    steps: int
    margins: dict[int, float]
    margins_before: dict[int, float]
    divergence: float
    divergence_before: float
    settings: ConsolidationSettings
    seconds: float

    @property
    def held(self) -> int:
        """How many edits hold."""
        return sum(margin > 0 for margin in self.margins.values())

    @property
    def unreached(self) -> dict[int, float]:
        """Margins of the edits that do not hold, by their number."""
        return {edit: margin for edit, margin in self.margins.items() if not margin > 0}


class Consolidating:
    """Consolidates what a workspace holds and keeps it consolidated.

    Args:
        workspace: Adapter, keys and history.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._work = workspace

    @property
    def was_taken_away(self) -> bool:
        """Whether the history has a consolidation that the adapter no longer holds."""
        return not self._is_held and self._work.history.consolidation() is not None

    @property
    def is_due(self) -> bool:
        """Whether so many edits have been added since the last one that the schedule asks for another."""
        config = self._work.config
        if config.consolidate != "every":
            return False
        return self._work.history.unconsolidated >= config.consolidate_every

    @property
    def is_due_before_saving(self) -> bool:
        """Whether the schedule asks for one before the adapter leaves."""
        config, standing = self._work.config, self._work.history.standing
        return config.consolidates(standing) and not (self._is_held and self._work.history.unconsolidated == 0)

    def run(
        self,
        texts: Sequence[str] | None,
        settings: ConsolidationSettings,
        progress: bool,
        start: Mapping[str, LowRankUpdate] | None = None,
    ) -> ConsolidationResult:
        """Consolidate the edits that stand; the caller sees to it that an error leaves everything as it was.

        Args:
            texts: Retention texts; None lets the base write them.
            settings: How.
            progress: Show a bar.
            start: Factors trained for these edits among others, from which training goes on for one in `GOES_ON` of its
                steps.

        Raises:
            SessionStateError: No edit stands; or only those of the last consolidation are read, and none since.
        """
        work, begun = self._work, time.perf_counter()
        records = [record for record in work.history.edits(standing=True) if record.request is not None]
        if not records:
            raise SessionStateError("history: it holds no request that stands, so there is nothing to consolidate")
        windowed = self.reads_window(settings)
        read = self._window(records, settings) if windowed else records
        begins_with = self.present() if windowed else start
        # each window draws anew, also the texts
        seed = settings.seed + work.history.last_batch if windowed else settings.seed
        drawn = dataclasses.replace(settings, seed=seed).for_edits(len(read))
        texts, written = self._texts(texts, drawn, windowed)
        if start is not None:
            drawn = dataclasses.replace(drawn, steps=math.ceil((drawn.steps or 0) / GOES_ON))
        restrained, standing = self._restrained(), {one.id: one.strength for one in records}
        ids = {record.id for record in read}
        others = [one.request for one in records if one.request is not None and one.id not in ids]
        requests, records = [one.request for one in read if one.request is not None], read
        known, numbers = work.history.phrasings(), [record.id for record in records]
        phrasings = [known.get(number) for number in numbers]
        with _bar(progress, drawn.steps) as show:
            # the last bits of what processes compute may part: rank 0's factors are everybody's
            found = same(
                "consolidation",
                lambda: consolidate(
                    *(work.model, work.tokenizer, requests, drawn, texts, work.protected_passages(), show),
                    phrasings=phrasings,
                    shows_bars=progress,
                    start=begins_with,
                    standing=others,
                ),
            )
        set_consolidated(work.model, found.factors)
        first, last = found.trained.seen[0], found.trained.seen[-1]
        record = ConsolidationRecord(
            *(work.history.last_batch, work.history.last_restraint, standing),
            *(settings, found.texts, found.factors),
            dict(zip(numbers, found.phrasings, strict=True)) if settings.phrasings else {},
            written,
        )
        told: dict[str, Any] = {"edits": len(standing), "read": len(records), "steps": last.step}
        told |= {"held": [first.held, last.held], "divergence": [first.divergence, last.divergence]}
        work.history.record_consolidation(record, restrained, told)
        work.note_pending()
        _warn_of_unreached(records, last.margins)
        return ConsolidationResult(
            tuple(numbers),
            last.step,
            dict(zip(numbers, last.margins, strict=True)),
            dict(zip(numbers, first.margins, strict=True)),
            last.divergence,
            first.divergence,
            dataclasses.replace(found.trained.settings, seed=settings.seed),
            time.perf_counter() - begun,
        )

    def again(self, progress: bool, start: Mapping[str, LowRankUpdate] | None = None) -> ConsolidationResult | None:
        """Consolidate as the last time: with its settings, its seed and its texts; None where no edit stands.

        Args:
            progress: Show a bar.
            start: As for `run`.
        """
        kept = self._work.history.consolidation()
        if kept is None or not self._work.history.standing:
            return None
        return self.run(kept.texts, kept.settings, progress, start)

    def drop(self) -> None:
        """Forget the last consolidation, so that it is not done again."""
        if self._work.history.consolidation() is not None:
            self._work.history.drop_consolidation()

    @property
    def edits(self) -> int:
        """How many edits the consolidation that the adapter holds is of; 0 where it holds none."""
        adapter = self._work.adapter
        return max((layer.consolidated_edits(adapter) for _, layer in self._work.model.edited_layers()), default=0)

    @property
    def _is_held(self) -> bool:
        return self.edits > 0

    def reads_window(self, settings: ConsolidationSettings) -> bool:
        """Whether such a consolidation goes on from the one that the adapter holds."""
        return settings.window is not None and self._is_held

    def _window(self, records: Sequence[EditRecord], settings: ConsolidationSettings) -> list[EditRecord]:
        """The edits since the last consolidation, what has not taken or was lost, and so many of the others.

        Raises:
            SessionStateError: There is none since.
        """
        kept = self._work.history.consolidation()
        assert kept is not None and settings.window is not None
        new = {record.id for record in records if record.batch > kept.batch or not record.has_taken}
        if not new:
            raise SessionStateError(
                "window: no edit has been added since the last consolidation; without a window all are trained anew"
            )
        new |= {record.id for record in records if record.state == LOST}
        before = [record.id for record in records if record.id not in new]
        draw = random.Random(f"{settings.seed} {self._work.history.last_batch}")
        chosen = new.union(draw.sample(before, min(settings.window, len(before))))
        return [record for record in records if record.id in chosen]

    def _texts(
        self, texts: Sequence[str] | None, settings: ConsolidationSettings, windowed: bool
    ) -> tuple[Sequence[str] | None, bool]:
        """The retention texts, None where the base shall write them; and whether it writes them or has written them.

        What it has written for fewer edits is not read again and again by more of them.
        """
        kept = self._work.history.consolidation()
        if texts is None or kept is None or not kept.written or list(texts) != list(kept.texts):
            return texts, texts is None
        return (None if windowed or len(texts) < (settings.texts or 0) else texts), True

    def present(self) -> dict[str, LowRankUpdate]:
        """The effective factors, by module: what was trained, with what has been added beside it."""
        adapter = self._work.adapter
        return {name: layer.effective_update(adapter) for name, layer in self._work.model.edited_layers()}

    def _restrained(self) -> dict[str, str]:
        """Begin with F(raw): what is pending is restrained, and what was trained before gives way.

        What has acted is written with the consolidation, so that one that fails leaves no trace.
        """
        if not self._is_held and not self._work.model.restraint_is_pending():
            return {}
        self._work.model.restrain()
        return self._work.restraints()


def settings_of(given: ConsolidationSettings | None, values: dict[str, Any]) -> ConsolidationSettings:
    """The settings, with these fields replaced.

    Raises:
        ValueError: A field is unknown, or a value is not accepted.
    """
    return ConsolidationSettings.of({**dataclasses.asdict(given or ConsolidationSettings()), **values})


class _bar:
    """A bar over the steps with both losses."""

    def __init__(self, shown: bool, steps: int | None) -> None:
        self._bar = moving_bar(total=steps, desc="Consolidating", unit=" steps", disable=not shown)

    def __enter__(self) -> Callable[[Step], None]:
        return self._show

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def _show(self, step: Step) -> None:
        losses = {"edits": f"{step.edit_loss:.3f}", "retention": f"{step.divergence:.4f}"}
        self._bar.set_postfix(losses | {"neighbors": f"{step.neighbors:.4f}"}, refresh=False)
        self._bar.update()


def _warn_of_unreached(records: Sequence[EditRecord], margins: Sequence[float]) -> None:
    failed = [(record, margin) for record, margin in zip(records, margins, strict=True) if not margin > 0]
    if failed:
        named = ", ".join(f"edit {record.id} (margin {margin:.2f})" for record, margin in failed[:NAMED])
        rest = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        warnings.warn(f"consolidation: not reached under the bound: {named}{rest}; its target is not the answer")
