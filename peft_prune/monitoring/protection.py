"""The guard of protected facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .callbacks import BatchReport, Limit, SessionCallback, checked_action

PROTECTED = "protected"
"""The name under which the share of protected facts that are kept is measured."""
NAMED = 5


class ProtectionGuard(SessionCallback):
    """Acts when a batch changes what the model answers to a protected fact.

    A session that is given protected facts puts one before its other callbacks.

    Args:
        kept: Called with the model; says of each fact whether its answer stands.
        action: "warn", "restrain", "rollback" (the batch, all of whose edits then count as failed) or "stop".

    Raises:
        ValueError: The action is unknown.
    """

    def __init__(self, kept: Callable[[Any], Sequence[bool]], action: str = "warn") -> None:
        self._kept = kept
        self.action = checked_action(action)
        self._before: set[int] = set()

    def on_edit_begin(self, session: Any, total: int) -> None:
        self._before = self._lost(session)[0]

    def on_batch_end(self, session: Any, report: BatchReport) -> None:
        self._look(session, report, self.action)
        if not report.asks_for("rollback"):
            self._before = self._now

    def after_restraint(self, session: Any, report: BatchReport) -> None:
        """Look again after the restraint that this guard asked for."""
        self._look(session, report, "warn", " even after the restraint")

    def limits(self) -> list[Limit]:
        """All of them shall be kept."""
        return [Limit(PROTECTED, 1.0, 1.0, True, self.action)]

    def _look(self, session: Any, report: BatchReport, action: str, rest: str = "") -> None:
        self._now, count = self._lost(session)
        report.measurements[PROTECTED] = 1 - len(self._now) / count
        new = sorted(self._now - self._before)
        if new:
            named = ", ".join(map(str, new[:NAMED])) + (" ..." if len(new) > NAMED else "")
            message = f"{len(new)} of {count} protected facts changed{rest}: records {named}"
            report.alert(action, type(self).__name__, message)

    def _lost(self, session: Any) -> tuple[set[int], int]:
        kept = self._kept(session.model)
        return {index for index, one in enumerate(kept) if not one}, len(kept)
