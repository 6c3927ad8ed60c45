"""What watches a session: called at its events, as transformers' trainer calls its callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .condition import LayerCondition

ACTIONS = ("warn", "restrain", "rollback", "stop")


@dataclass(frozen=True)
class Alert:
    """Something a callback wants done or known.

    Args:
        action: "warn" says it and goes on; "restrain" applies the restraint now; "rollback" takes the batch out again;
            "stop" ends the call to ``edit`` after this batch.
        source: Name of the callback.
        message: One line.
    """

    action: str
    source: str
    message: str


@dataclass(frozen=True)
class Limit:
    """A bound that a callback watches, for the history and its reports.

    Args:
        figure: One of `LAYER_FIGURES`, or the name under which the callback's measurements stand.
        value: What must not be passed.
        base: The base model's own value.
        higher_is_better: Whether the figure must stay above the limit, or below it.
        action: What happens when it is passed, one of `ACTIONS`.
    """

    figure: str
    value: float
    base: float
    higher_is_better: bool
    action: str


@dataclass
class BatchReport:
    """A batch that has been verified and restrained, and is about to be written to the history.

    Args:
        batch: Its number.
        results: One ``EditResult`` for each request of the batch.
        edits: Edits that stand after it.
        figures: Of every layer, where the session monitors.
        seconds: What the batch took so far.
        restrained: Modules on which the restraint has acted in this batch.
        measurements: Values of probes, by name; callbacks add theirs.
        alerts: What callbacks asked for.
    """

    batch: int
    results: Sequence[Any]
    edits: int
    figures: Mapping[str, LayerCondition]
    seconds: float
    restrained: Sequence[str] = ()
    measurements: dict[str, float] = field(default_factory=dict)
    alerts: list[Alert] = field(default_factory=list)

    def alert(self, action: str, source: str, message: str) -> None:
        """Ask for one of `ACTIONS`.

        Raises:
            ValueError: The action is none of them.
        """
        self.alerts.append(Alert(checked_action(action), source, message))

    def asks_for(self, action: str) -> list[Alert]:
        """The alerts that ask for this action."""
        return [alert for alert in self.alerts if alert.action == action]


class SessionCallback:
    """Base of all callbacks; override the events that matter. Nothing a callback returns is used."""

    needs_figures: ClassVar[bool] = False
    """Whether it cannot work in a session without a monitor."""

    needs_moments: ClassVar[bool] = False
    """Whether it cannot work without the second moments of all adapted modules."""

    def on_session_begin(self, session: Any) -> None:
        """The session is ready; the model may hold edits already if it was resumed."""

    def on_edit_begin(self, session: Any, total: int) -> None:
        """A call to ``edit`` with this many requests begins."""

    def on_batch_begin(self, session: Any, requests: Sequence[Any]) -> None:
        """A batch is about to be computed."""

    def on_batch_end(self, session: Any, report: BatchReport) -> None:
        """A batch has been verified and restrained; ``report.alert`` may ask for something before it is written."""

    def after_restraint(self, session: Any, report: BatchReport) -> None:
        """The restraint that this callback asked for in `on_batch_end` has acted, and ``report`` has new figures."""

    def on_restrain(self, session: Any, modules: Sequence[str]) -> None:
        """The restraint has acted on these modules."""

    def on_undo(self, session: Any, edits: Sequence[int]) -> None:
        """These edits have been taken out of the adapter."""

    def on_edit_end(self, session: Any) -> None:
        """A call to ``edit`` is over, whichever way it ended."""

    def on_session_end(self, session: Any) -> None:
        """The session is being closed."""

    def limits(self) -> Sequence[Limit]:
        """The bounds that this callback watches; asked for once a call to ``edit`` has begun."""
        return ()


def checked_action(action: str) -> str:
    """The action itself.

    Raises:
        ValueError: It is none of `ACTIONS`.
    """
    if action not in ACTIONS:
        raise ValueError(f"action: {action!r} is not one of {', '.join(ACTIONS)}")
    return action
