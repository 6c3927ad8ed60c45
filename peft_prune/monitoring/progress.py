"""Callbacks that show a session's course: a bar, and any tracker that Accelerate knows."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from ..moving import moving_bar
from .callbacks import BatchReport, SessionCallback


class ProgressCallback(SessionCallback):
    """A bar over the requests of a call to ``edit``, with how many took and the largest growth of κ."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._applied = 0

    def on_edit_begin(self, session: Any, total: int) -> None:
        self._bar, self._applied = moving_bar(total=total, desc="Editing", unit="edit"), 0

    def on_batch_end(self, session: Any, report: BatchReport) -> None:
        if self._bar is None:
            return
        self._applied += sum(result.took for result in report.results)
        shown: dict[str, Any] = {"took": self._applied}
        if report.figures:
            shown["κ"] = f"{max(figures.condition_number for figures in report.figures.values()):.3g}"
        self._bar.update(len(report.results))
        self._bar.set_postfix(shown)

    def on_edit_end(self, session: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class TrackerCallback(SessionCallback):
    """Sends the figures of every batch to a tracker, under the number of edits that stand.

    Args:
        tracker: A name that Accelerate knows ("tensorboard", "wandb", "trackio", "mlflow", ...), or a tracker of
            ``accelerate.tracking``, one of your own included.
        run_name: Name of the run or project, for a tracker that is named.
        logging_dir: Folder, for a named tracker that writes files.
        options: For the named tracker's own class.

    Raises:
        ValueError: The name is unknown, or its library is not installed.
    """

    def __init__(
        self,
        tracker: str | GeneralTracker,
        run_name: str = "peft-prune",
        *,
        logging_dir: str | None = None,
        **options: Any,
    ) -> None:
        if isinstance(tracker, str):
            known, installed = list(LOGGER_TYPE_TO_CLASS), [str(name) for name in get_available_trackers()]
            if tracker not in known:
                raise ValueError(f"tracker: {tracker!r} is not one of {', '.join(known)}")
            if tracker not in installed:
                raise ValueError(
                    f"tracker: {tracker!r} is not installed; installed are {', '.join(installed) or 'none'}"
                )
        self._named = tracker
        self._run_name = run_name
        self._logging_dir = logging_dir
        self._options = options
        self.tracker: Any = None

    def on_session_begin(self, session: Any) -> None:
        self.tracker = self._named if isinstance(self._named, GeneralTracker) else self._made(str(self._named))
        values = session.settings()
        self.tracker.store_init_configuration(
            {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in values.items()}
        )

    def on_batch_end(self, session: Any, report: BatchReport) -> None:
        self.tracker.log(batch_values(report), step=report.edits)

    def on_session_end(self, session: Any) -> None:
        if self.tracker is not None:
            self.tracker.finish()
            self.tracker = None

    def _made(self, name: str) -> Any:
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        options = dict(self._options)
        if kind.requires_logging_directory:
            options["logging_dir"] = self._logging_dir or "."
        tracker = kind(self._run_name, **options)
        tracker.start()
        return tracker


def batch_values(report: BatchReport) -> dict[str, float]:
    """The figures of a batch under one name each, ``what/module`` for those of a layer; those that are not finite are
    left out, for trackers cannot draw them."""
    taken = sum(result.took for result in report.results)
    values: dict[str, float] = {
        "edits": report.edits,
        "success_rate": taken / max(1, len(report.results)),
        "seconds": report.seconds,
        **report.measurements,
    }
    for module, figures in report.figures.items():
        values |= {f"{name}/{module}": value for name, value in asdict(figures).items() if value is not None}
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
