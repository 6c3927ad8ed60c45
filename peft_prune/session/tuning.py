"""Choose how strong the restraint is: sweep it on the accumulated factors, without editing again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..errors import SessionStateError
from ..moving import moving_bar
from ..requests import EditRequest
from ..spectral import LogRestraint, parse_restraint, restraint_text
from .session import EditSession
from .verification import verify

SETTINGS = (
    *("none", "scale", "clip", "linear", "log:e", "log:2", "log:1.7", "log:1.5", "log:1.4", "log:1.3", "log:1.25"),
    *("log:1.2", "log:1.15", "log:1.12", "log:1.1", "log:1.07"),
)
"""The restraints that are tried if none are given, and with them four bases close to the configured one."""

LOSS_WEIGHT = 2.0
"""How much more a loss counts than a gain of the same number of intervals."""

Probe = Callable[[Any], "float | Sequence[float]"]


@dataclass(frozen=True)
class TradeOff:
    """One setting and what it gives.

    Args:
        restraints: Word of every module.
        success: Share of the edits whose target is the greedy answer to the bare prompt.
        retention: Mean of what the probe gives.
        condition_number: The largest κ(W0 + ΔW) of a module.
        success_loss: Success of the reference minus this one's, and half the width of its 95 % interval (paired).
        retention_loss: The same for retention.
        on_front: No other setting is better in both success and retention.
    """

    restraints: Mapping[str, str]
    success: float
    retention: float
    condition_number: float
    success_loss: tuple[float, float] = (0.0, 0.0)
    retention_loss: tuple[float, float] = (0.0, 0.0)
    on_front: bool = False

    @property
    def label(self) -> str:
        """The word where all modules have the same, else those of all."""
        words = list(dict.fromkeys(self.restraints.values()))
        return words[0] if len(words) == 1 else ", ".join(self.restraints.values())

    @property
    def is_safe(self) -> bool:
        """Neither loss exceeds its interval."""
        return all(loss <= half for loss, half in (self.success_loss, self.retention_loss))


@dataclass(frozen=True)
class TradeOffs:
    """All settings of a sweep.

    Args:
        points: In the order in which they were tried.
        reference: The setting that was configured before.
        recommended: The one to take; see `tune_restraint`.
    """

    points: tuple[TradeOff, ...]
    reference: TradeOff
    recommended: TradeOff

    @property
    def front(self) -> list[TradeOff]:
        """The settings that no other one beats in both, by falling success."""
        return sorted((p for p in self.points if p.on_front), key=lambda p: (-p.success, p.retention))


def tune_restraint(
    target: EditSession | Any,
    probe: Probe,
    *,
    requests: Sequence[EditRequest] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    settings: Sequence[str] | None = None,
    groups: str | Sequence[Sequence[str]] = "all",
    choose: bool = True,
    progress: bool = True,
) -> TradeOffs:
    """Sweep the restraint over the accumulated raw factors; no edit is computed again.

    The rule: of all settings that lose neither success nor retention against the configured one by more than the 95 %
    interval of the paired difference, the one with the largest sum of gains, each in units of its interval, where a
    loss counts `LOSS_WEIGHT` times: what is gained beyond doubt outweighs a loss that may be chance. The configured
    setting always qualifies, with a sum of 0. With a probe that gives one number, a tenth of its value is the unit.

    Args:
        target: A session, or a PEFT model whose adapter holds its raw factors.
        probe: Called with the model; gives one score for each of its items, higher being better, or one number, for
            which no interval is known, so that any loss counts. Losses such as perplexities are given negative.
        requests: The edits to look at; those of the session that stand if not given.
        tokenizer: Of the model; the session's own if not given.
        settings: Restraints as words, such as "log:1.5"; `SETTINGS` and four bases close to the configured one if not
            given.
        groups: "all" for one restraint for all layers, "layer" for one for each, or lists of module names. With several
            groups each is swept in turn after a common sweep, the others staying at what is recommended so far.
        choose: Write the recommended setting into the configuration, apply it, and note it in the history.
        progress: Show a bar.

    Raises:
        ValueError: A setting is no restraint, a group names an unknown module, or there are no edits to look at.
        SessionStateError: The adapter's raw factors are not known.
    """
    session = target if isinstance(target, EditSession) else None
    model = target.model if session is not None else target
    tokenizer = session.tokenizer if session is not None else tokenizer
    if session is not None and requests is None:
        records = session.history.edits(standing=True)
        requests = [record.request for record in records if record.request is not None and record.status == "applied"]
    if not requests or tokenizer is None:
        raise ValueError("requests, tokenizer: there must be edits to look at, and a tokenizer")
    sweep = _Sweep(model, tokenizer, requests, probe, None if session is None else session.workspace.asking.dtype)
    parts = _groups(groups, sweep.modules)
    words = _settings(settings, sweep.configured)
    total = 1 + len(words) * (1 + (len(parts) if len(parts) > 1 else 0))
    with sweep.untouched(), moving_bar(total=total, desc="Restraints", disable=not progress) as bar:
        reference = sweep.tried(sweep.configured, bar)
        best = sweep.recommended(reference, [dict.fromkeys(sweep.modules, word) for word in words], bar)
        if len(parts) > 1:
            for part in parts:
                candidates = [{**best.restraints, **dict.fromkeys(part, word)} for word in words]
                best = sweep.recommended(reference, candidates, bar)
    points = sweep.points(reference)
    found = {tuple(point.restraints.items()): point for point in points}
    result = TradeOffs(tuple(points), found[tuple(reference.restraints.items())], found[tuple(best.restraints.items())])
    if choose:
        if session is not None:
            session.choose_restraints(
                result.recommended.restraints, {"success": best.success, "retention": best.retention}
            )
        else:
            target.set_restraints(result.recommended.restraints)  # type: ignore[union-attr]
            model.restrain()
    return result


@dataclass(frozen=True)
class _Scores:
    restraints: Mapping[str, str]
    success: Sequence[float]
    retention: Sequence[float]
    condition_number: float


class _Sweep:
    """Tries settings on a model, each once, and remembers what they gave."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        probe: Probe,
        dtype: torch.dtype | None,
    ) -> None:
        self._model, self._tokenizer, self._requests, self._probe = model, tokenizer, requests, probe
        adapter, self._dtype = model.one_adapter(None), dtype
        self._adapter, self._layers = adapter, dict(model.edited_layers())
        for name, layer in self._layers.items():
            if layer.prune_edit_update[adapter].raw_lost:
                raise SessionStateError(f"{name}: its factors were loaded already restrained; resume from the history")
        self.modules = list(self._layers)
        self.configured = {name: restraint_text(layer.restraint(adapter)) for name, layer in self._layers.items()}
        self._scores: dict[tuple[tuple[str, str], ...], _Scores] = {}

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """The adapter and its configuration are afterwards as before."""
        state, config = self._model.edit_state(), self._model.peft_config[self._adapter]
        fields = {name: getattr(config, name) for name in ("restraint", "alpha", "restraint_pattern")}
        try:
            yield
        finally:
            for name, value in fields.items():
                setattr(config, name, value)
            self._model.restore_edit_state(state)

    def tried(self, restraints: Mapping[str, str], bar: Any) -> TradeOff:
        key = tuple(restraints.items())
        if key not in self._scores:
            self._model.set_restraints(restraints)
            self._model.restrain()
            given = self._probe(self._model)
            retention = [float(given)] if isinstance(given, (int, float)) else [float(score) for score in given]
            held = [float(one.holds) for one in verify(self._model, self._tokenizer, self._requests, dtype=self._dtype)]
            condition = max(
                layer.condition().of(layer.effective_update(self._adapter)).condition_number
                for layer in self._layers.values()
            )
            self._scores[key] = _Scores(dict(restraints), held, retention, condition)
        bar.update()
        return self._point(self._scores[key], None)

    def recommended(self, reference: TradeOff, candidates: Sequence[Mapping[str, str]], bar: Any) -> TradeOff:
        for candidate in candidates:
            self.tried(candidate, bar)
        safe = [point for point in self.points(reference) if point.is_safe]
        return max(safe, key=lambda point: _gain(point, reference))

    def points(self, reference: TradeOff) -> list[TradeOff]:
        base = self._scores[tuple(reference.restraints.items())]
        points = [self._point(scores, base) for scores in self._scores.values()]
        return [replace(point, on_front=not any(_beats(other, point) for other in points)) for point in points]

    def _point(self, scores: _Scores, base: _Scores | None) -> TradeOff:
        point = TradeOff(scores.restraints, _mean(scores.success), _mean(scores.retention), scores.condition_number)
        if base is None:
            return point
        return replace(
            point,
            success_loss=_paired(base.success, scores.success),
            retention_loss=_paired(base.retention, scores.retention),
        )


def _groups(groups: str | Sequence[Sequence[str]], modules: Sequence[str]) -> list[list[str]]:
    if isinstance(groups, str):
        if groups not in ("all", "layer"):
            raise ValueError(f"groups: {groups!r} is not one of all, layer; or give lists of module names")
        return [list(modules)] if groups == "all" else [[module] for module in modules]
    unknown = [name for group in groups for name in group if name not in modules]
    if unknown:
        raise ValueError(f"groups: {unknown[0]!r} is not adapted; adapted are {', '.join(modules)}")
    return [list(group) for group in groups]


def _gain(point: TradeOff, reference: TradeOff) -> float:
    """Sum of the gains, each in units of its interval, losses weighing more."""
    losses = ((point.success_loss, reference.success), (point.retention_loss, reference.retention))
    units = [loss / (half or 0.1 * abs(value) or 1.0) for (loss, half), value in losses]
    return sum(-LOSS_WEIGHT * unit if unit > 0 else -unit for unit in units)


def _settings(given: Sequence[str] | None, configured: Mapping[str, str]) -> list[str]:
    """The settings to try: those given, or `SETTINGS` and bases close to the configured ones."""
    if given is not None:
        return list(given)
    restraints = [parse_restraint(word) for word in configured.values()]
    bases = {float(restraint.alpha) for restraint in restraints if isinstance(restraint, LogRestraint)}
    near = [f"log:{1 + (base - 1) * factor:.4g}" for base in sorted(bases) for factor in (0.9, 0.95, 1.05, 1.1)]
    return list(dict.fromkeys([*SETTINGS, *near]))


def _beats(one: TradeOff, other: TradeOff) -> bool:
    at_least = one.success >= other.success and one.retention >= other.retention
    return at_least and (one.success, one.retention) != (other.success, other.retention)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _paired(reference: Sequence[float], scores: Sequence[float]) -> tuple[float, float]:
    """Mean loss against the reference, item by item, and half the width of its 95 % interval."""
    losses = [one - other for one, other in zip(reference, scores, strict=True)]
    mean, count = _mean(losses), len(losses)
    if count < 2:
        return mean, 0.0
    variance = sum((loss - mean) ** 2 for loss in losses) / (count - 1)
    return mean, 1.96 * math.sqrt(variance / count)
