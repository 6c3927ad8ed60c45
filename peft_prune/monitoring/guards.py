"""Guards: callbacks that act before a model degrades."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from .callbacks import BatchReport, Limit, SessionCallback, checked_action
from .condition import CONDITION_GROWTH, OUTPUT_PERTURBATION, UPDATE_NORM


class LayerGuard(SessionCallback):
    """Base of guards that look at one figure of every layer; a subclass says which.

    Args:
        limit: What no layer may exceed.
        action: "warn", "restrain", "rollback" (the batch) or "stop". After "restrain" a layer that is still above is
            reported as a warning.

    Raises:
        ValueError: The action is unknown.
    """

    needs_figures = True
    figure: ClassVar[str]
    base: ClassVar[float]
    """The figure of an unedited layer."""

    def __init__(self, limit: float, action: str) -> None:
        self.limit = float(limit)
        self.action = checked_action(action)

    @abstractmethod
    def said(self, value: float, rest: str) -> str:
        """The figure in words, with ``rest`` behind it."""

    def on_batch_end(self, session: Any, report: BatchReport) -> None:
        above = self._above(report)
        if above:
            name = max(above, key=lambda own: (math.isnan(above[own]), above[own]))
            self._say(report, self.action, name, above[name])

    def limits(self) -> list[Limit]:
        """The limit of the figure."""
        return [Limit(self.figure, self.limit, self.base, False, self.action)]

    def after_restraint(self, session: Any, report: BatchReport) -> None:
        """Say so where the restraint that this guard asked for was not enough."""
        for name, value in self._above(report).items():
            self._say(report, "warn", name, value, " even after the restraint")

    def _above(self, report: BatchReport) -> dict[str, float]:
        values = {name: one.value(self.figure) for name, one in report.figures.items()}
        # a NaN is above as well
        return {name: value for name, value in values.items() if value is not None and not value <= self.limit}

    def _say(self, report: BatchReport, action: str, name: str, value: float, rest: str = "") -> None:
        message = f"{name}: {self.said(value, rest)}, {self.limit:g} is allowed"
        report.alert(action, type(self).__name__, message)


class ConditionGuard(LayerGuard):
    """Acts when the condition number of a layer has grown too far.

    A layer whose base is singular, κ(W0) = ∞, has no growth: the guard says so once, and `NormGuard` and `OutputGuard`
    act there.

    Args:
        max_growth: κ(W0 + ΔW) / κ(W0) that no layer may exceed.
        action: "warn", "restrain", "rollback" (the batch) or "stop". After "restrain" a layer that is still above is
            reported as a warning.

    Raises:
        ValueError: ``max_growth`` is not above 1, or the action is unknown.
    """

    figure, base = CONDITION_GROWTH, 1.0

    def __init__(self, max_growth: float, action: str = "warn") -> None:
        if not max_growth > 1:
            raise ValueError(f"max_growth: {max_growth} must be above 1")
        super().__init__(max_growth, action)
        self._singular: set[str] = set()

    @property
    def max_growth(self) -> float:
        """κ(W0 + ΔW) / κ(W0) that no layer may exceed."""
        return self.limit

    def on_batch_end(self, session: Any, report: BatchReport) -> None:
        for name, one in report.figures.items():
            if not math.isfinite(one.condition_number_base) and name not in self._singular:
                self._singular.add(name)
                message = (
                    f"{name}: the base is singular, so that the growth of its condition number says nothing; "
                    "NormGuard and OutputGuard watch it"
                )
                report.alert("warn", type(self).__name__, message)
        super().on_batch_end(session, report)

    def said(self, value: float, rest: str) -> str:
        return f"the condition number is {value:.3g} times the base's{rest}"


class NormGuard(LayerGuard):
    """Acts when the accumulated update of a layer has grown too large; also where the base is singular.

    Args:
        max_norm: ‖ΔW‖₂ / σmax(W0) that no layer may exceed, 1 for an update as large as the layer itself.
        action: As for `ConditionGuard`.

    Raises:
        ValueError: ``max_norm`` is not above 0, or the action is unknown.
    """

    figure, base = UPDATE_NORM, 0.0

    def __init__(self, max_norm: float, action: str = "warn") -> None:
        if not 0 < max_norm < math.inf:
            raise ValueError(f"max_norm: {max_norm} must be a number above 0")
        super().__init__(max_norm, action)

    def said(self, value: float, rest: str) -> str:
        return f"‖ΔW‖₂ is {value:.3g} times σmax(W₀){rest}"


class OutputGuard(LayerGuard):
    """Acts when a layer's outputs on ordinary inputs have changed too much; it needs their second moment C.

    Args:
        max_output_change: tr(ΔW C ΔWᵀ) / tr(W0 C W0ᵀ) that no layer may exceed: the mean squared change of the output
            over the mean squared output.
        action: As for `ConditionGuard`.

    Raises:
        ValueError: ``max_output_change`` is not above 0, or the action is unknown.
    """

    needs_moments = True
    figure, base = OUTPUT_PERTURBATION, 0.0

    def __init__(self, max_output_change: float, action: str = "warn") -> None:
        if not 0 < max_output_change < math.inf:
            raise ValueError(f"max_output_change: {max_output_change} must be a number above 0")
        super().__init__(max_output_change, action)

    def said(self, value: float, rest: str) -> str:
        return f"the mean squared change of ordinary outputs is {value:.3g} of their mean square{rest}"


class AbilityGuard(SessionCallback):
    """Acts when something the model could do has got worse against the base model itself.

    Args:
        probe: Called with the PEFT model; gives a number, such as the accuracy on a file of facts or the perplexity of
            a text. Before the first batch it is called once with the adapter disabled.
        max_drop: Largest loss against the base, relative to the base's value: 0.05 lets an accuracy of 0.80 fall to
            0.76, and with ``higher_is_better=False`` a perplexity of 20 rise to 21. Infinity measures only.
        every: Batches between two calls.
        action: "warn", "restrain", "rollback" (the batch) or "stop".
        higher_is_better: Off for perplexities and losses.
        name: In the history, the trackers and the messages; that of the probe's function if not given.

    Raises:
        ValueError: ``max_drop`` is negative, ``every`` is below 1, or the action is unknown.
    """

    def __init__(
        self,
        probe: Callable[[Any], float],
        max_drop: float,
        *,
        every: int = 1,
        action: str = "warn",
        higher_is_better: bool = True,
        name: str | None = None,
    ) -> None:
        if not max_drop >= 0:
            raise ValueError(f"max_drop: {max_drop} must be at least 0")
        if every < 1:
            raise ValueError(f"every: {every} must be at least 1")
        self.probe = probe
        self.max_drop = max_drop
        self.every = every
        self.action = checked_action(action)
        self.higher_is_better = higher_is_better
        self.name = name or str(getattr(probe, "__name__", "probe"))
        self.baseline: float | None = None

    def measure_base(self, model: Any) -> None:
        """Measure the unedited model, once; a session does so before its first batch.

        Raises:
            ValueError: The probe gives no finite number other than 0.
        """
        baseline = float(self.probe(model))
        if not math.isfinite(baseline) or baseline == 0:
            raise ValueError(f"probe: {self.name} gives {baseline} on the base model, not a finite number other than 0")
        self.baseline = baseline

    def on_edit_begin(self, session: Any, total: int) -> None:
        if self.baseline is None:
            with session.model.disable_adapter():
                self.measure_base(session.model)

    def on_batch_end(self, session: Any, report: BatchReport) -> None:
        # counted over all sessions of a history, each of which may have few batches
        if report.batch % self.every == 0:
            self._look(session, report, self.action)

    def after_restraint(self, session: Any, report: BatchReport) -> None:
        """Measure again after the restraint that this guard asked for."""
        self._look(session, report, "warn", " even after the restraint")

    def limits(self) -> list[Limit]:
        """The value that must not be passed; none where any loss is allowed, or before the base has been measured."""
        if self.baseline is None or math.isinf(self.max_drop):
            return []
        room = self.max_drop * abs(self.baseline)
        value = self.baseline - room if self.higher_is_better else self.baseline + room
        return [Limit(self.name, value, self.baseline, self.higher_is_better, self.action)]

    def drop(self, value: float) -> float:
        """The loss of ``value`` against the base, relative to the base's own."""
        assert self.baseline is not None
        change = self.baseline - value if self.higher_is_better else value - self.baseline
        return change / abs(self.baseline)

    def _look(self, session: Any, report: BatchReport, action: str, rest: str = "") -> None:
        value = float(self.probe(session.model))
        report.measurements[self.name] = value
        # a NaN is a loss as well
        if not self.drop(value) <= self.max_drop:
            report.alert(
                action,
                type(self).__name__,
                f"{self.name}: {value:.4g}{rest} against {self.baseline:.4g} of the base, a loss of {self.max_drop:g} "
                "of it is allowed",
            )
