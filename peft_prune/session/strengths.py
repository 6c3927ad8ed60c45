"""The least strength at which each edit still holds: scale its own factors, look, and scale again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..editors.asking import request_contexts
from ..moving import moving_bar
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .replay import joined
from .session import EditSession
from .verification import target_probabilities

REPAIRS = 3


@dataclass(frozen=True)
class Calibration:
    """What `calibrate_strengths` found.

    Args:
        strengths: By number of the edit; 1 is the edit as it was made.
        probabilities: Least probability of the target over the contexts at that strength, before the restraint.
        held_before: Edits that had the margin at strength 1.
        rounds: Looks that were taken.
    """

    strengths: dict[int, float]
    probabilities: dict[int, float]
    held_before: tuple[int, ...]
    rounds: int


def calibrate_strengths(
    session: EditSession,
    margin: float = 0.8,
    *,
    rounds: int = 5,
    contexts: Sequence[str] | None = None,
    apply: bool = True,
    progress: bool = True,
) -> Calibration:
    """Find the least strength of each edit at which every context still gives its target ``margin``; then restrain.

    All edits are scaled at once and looked at in batched forward passes: a bisection between the greatest strength that
    was too little and the least that was enough, for each edit by itself. Edits share directions, so those that have
    lost the margin by what became of the others are raised again at the end. An edit that has not the margin at
    strength 1 keeps that strength. No edit is computed again; the restraint acts on the new raw sum once, at the end.

    Args:
        session: Its standing edits are calibrated.
        margin: Least probability of the target, the geometric mean over its tokens, in every context.
        rounds: Bisections; the strengths are found to 2 to the power of -rounds.
        contexts: Prefixes of the prompts; the editor's own if not given.
        apply: Set the strengths in the session and its history, and restrain.
        progress: Show a bar.

    Raises:
        ValueError: ``margin`` does not lie between 0 and 1, ``rounds`` is below 1, or no edit stands.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin: {margin} must lie between 0 and 1")
    if rounds < 1:
        raise ValueError(f"rounds: {rounds} must be at least 1")
    state = session.model.edit_state()
    try:
        with moving_bar(total=rounds + 2 + REPAIRS, desc="Strengths", disable=not progress) as bar:
            calibration = _bisect(_Scaled(session, contexts, bar), margin, rounds)
    finally:
        session.model.restore_edit_state(state)
    if apply:
        session.set_strengths(calibration.strengths)
    return calibration


def _bisect(scaled: _Scaled, margin: float, rounds: int) -> Calibration:
    count = len(scaled.ids)
    full = torch.ones(count)
    holds = scaled.look(full) >= margin
    too_little, enough = torch.zeros(count), full.clone()
    for _ in range(rounds):
        tried = torch.where(holds, (too_little + enough) / 2, full)
        took = scaled.look(tried) >= margin
        enough = torch.where(took & holds, tried, enough)
        too_little = torch.where(~took & holds, tried, too_little)
    chosen = enough
    for _ in range(REPAIRS):
        lost = (scaled.look(chosen) < margin) & holds & (chosen < 1)
        if not bool(lost.any()):
            break
        chosen = torch.where(lost, (chosen * 1.1).clamp(max=1.0), chosen)
    final = scaled.look(chosen)
    return Calibration(
        {edit: float(value) for edit, value in zip(scaled.ids, chosen, strict=True)},
        {edit: float(value) for edit, value in zip(scaled.ids, final, strict=True)},
        tuple(edit for edit, held in zip(scaled.ids, holds.tolist(), strict=True) if held),
        scaled.looks,
    )


class _Scaled:
    """The raw sum with a factor for each edit, and the least probability of each target under it."""

    def __init__(self, session: EditSession, contexts: Sequence[str] | None, bar: Any) -> None:
        self._session, self._bar, self.looks = session, bar, 0
        self.ids: list[int] = []
        parts, owners = [], {name: list[int]() for name, _ in session.model.edited_layers()}
        requests: list[list[EditRequest]] = []
        standing = session.history.edits(standing=True)
        for record, factors in session.standing_factors():
            members = [r.request for r in standing if r.leader == record.id and r.request is not None]
            for name, update in factors.updates.items():
                owners[name] += [len(self.ids)] * update.rank
            self.ids.append(record.id)
            parts.append(factors)
            requests.append(members)
        if not self.ids:
            raise ValueError("session: no edit stands")
        self._updates = joined(parts)
        self._owners = {name: torch.tensor(own, dtype=torch.long) for name, own in owners.items()}
        prefixes = session.contexts if contexts is None else contexts
        self._texts: list[str] = []
        self._targets: list[str] = []
        self._separators: list[str | None] = []
        self._edit: list[int] = []
        for index, members in enumerate(requests):
            for request in members:
                for context in request_contexts(session.tokenizer, request, prefixes):
                    self._texts.append(context.text)
                    self._targets.append(request.target_new)
                    self._separators.append(context.separator)
                    self._edit.append(index)

    def look(self, strengths: Tensor) -> Tensor:
        """Least probability of each edit's targets over the contexts at these strengths, (edits,)."""
        session, adapter = self._session, self._session.model.one_adapter(None)
        for name, layer in session.model.edited_layers():
            if name in self._updates:
                update = self._updates[name]
                columns = update.B * strengths[self._owners[name]]
                layer.set_raw_update(adapter, LowRankUpdate(columns, update.A), edits=len(self.ids))
        found = torch.tensor(
            target_probabilities(session.model, session.tokenizer, self._texts, self._targets, self._separators)
        )
        self.looks += 1
        self._bar.update()
        least = torch.ones(len(self.ids))
        return least.scatter_reduce(0, torch.tensor(self._edit), found, "amin")
