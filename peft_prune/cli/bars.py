"""What a session tells while it edits, as a bar's movement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..monitoring import BatchReport, SessionCallback


class EditProgress(SessionCallback):
    """Moves a bar.

    Args:
        progress: The bar: what is done, how much of it, and of how much.
        total: Number of requests.
        then: What follows every batch: called with the session and the number of requests that are done.
    """

    def __init__(
        self,
        progress: Callable[[str, int, int], None],
        total: int,
        then: Callable[[Any, int], None] | None = None,
    ) -> None:
        self._progress, self._total, self._done, self._then = progress, total, 0, then

    def on_batch_end(self, session: Any, report: BatchReport) -> None:
        self._done += len(report.results)
        self._progress("Editing", self._done, self._total)
        if self._then is not None:
            self._then(session, self._done)
