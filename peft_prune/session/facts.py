"""What a history says of the model, the editor and the restraint of its session, and whether others are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..editors import Editor, SecondMoments, get_editor
from ..editors.pages import rest
from ..errors import HistoryError
from ..models.decoder import unwrapped
from ..models.fingerprint import base_fingerprint
from ..models.naming import model_name
from ..tuner import PruneEditConfig
from .batch import CONSOLIDATE, SKIP

RESTRAINT_FIELDS = (
    "restraint",
    "alpha",
    "restraint_pattern",
    "restrain_on",
    "restrain_every",
    "max_condition_growth",
    "max_update_norm",
    "max_output_perturbation",
    "max_rank",
    "consolidate",
    "consolidate_every",
    "consolidate_window",
)
CONFIG_FIELDS = (*RESTRAINT_FIELDS, "target_modules", "layers_to_transform", "layers_pattern")
"""Fields of the adapter's configuration that a history needs to build it again."""


def session_facts(
    model: Any,
    editor: Editor,
    contexts: tuple[str, ...],
    config: PruneEditConfig,
    statistics: SecondMoments | None,
) -> dict[str, Any]:
    """What a new history says of its session, ready for JSON."""
    return {
        "model": model_name(unwrapped(model)),
        "base": base_fingerprint(model),
        "editor": {"name": editor.name, "hyperparameters": dataclasses.asdict(editor.hyperparameters)},
        "contexts": list(contexts),
        "config": stored_config(config),
        "moments": {} if statistics is None else moments_digest(statistics.moments),
    }


def stored_config(config: PruneEditConfig) -> dict[str, Any]:
    """The fields that a history needs to build the adapter again, ready for JSON."""
    values = {name: getattr(config, name) for name in CONFIG_FIELDS}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def config_of(facts: Mapping[str, Any], history: str | Path) -> PruneEditConfig:
    """The adapter's configuration that a history stores.

    Raises:
        HistoryError: It is none.
    """
    stored = {name: value for name, value in facts["config"].items() if value is not None}
    unknown = sorted(set(stored) - set(CONFIG_FIELDS))
    if unknown:
        raise HistoryError(f"history: {history}: its config has a field {unknown[0]!r}, which no adapter has")
    try:
        return PruneEditConfig(task_type="CAUSAL_LM", **stored)
    except (TypeError, ValueError) as error:
        raise HistoryError(f"history: {history}: its config is none of an adapter: {error}") from None


def editor_of(facts: Mapping[str, Any], history: str | Path) -> Editor:
    """The editor that a history was made with.

    Raises:
        HistoryError: There is none of this name, or its hyperparameters are none of it.
    """
    values = {name: _tuples(value) for name, value in facts["editor"]["hyperparameters"].items()}
    try:
        return get_editor(facts["editor"]["name"], **values)
    except (TypeError, ValueError) as error:
        raise HistoryError(f"history: {history}: its editor is none of this version: {error}") from None


def moments_digest(moments: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """A few sums of each second moment, by which another one is noticed."""
    found = {}
    for name, moment in moments.items():
        weights = torch.linspace(0, 1, len(moment), dtype=torch.float64, device=moment.device)
        diagonal = moment.diagonal().double()
        found[name] = [float(diagonal.sum()), float(diagonal @ weights), float(moment[0].double().sum())]
        rest(moment)  # an element of each row brings in all pages of a mapped file
    return found


def on_failure_of(facts: Mapping[str, Any], history: str | Path) -> str:
    """What becomes of an edit that does not take, as the history was begun.

    Raises:
        HistoryError: It is nothing that a history is begun with.
    """
    found = facts.get("on_failure", SKIP)
    if found not in (SKIP, CONSOLIDATE):
        raise HistoryError(f"history: {history}: its on_failure is {found!r:.60}, {CONSOLIDATE!r} is accepted")
    return str(found)


def require_moments(facts: Mapping[str, Any], statistics: SecondMoments | None) -> None:
    """Raise HistoryError where the second moments are not those that a history's edits were made with."""
    if statistics is None or not facts["moments"]:
        return
    found = moments_digest(statistics.moments)
    for name, sums in facts["moments"].items():
        if name in found and found[name] != sums:
            raise HistoryError(f"history: its edits were made with another second moment of {name}")


def _tuples(value: Any) -> Any:
    """JSON knows lists alone, hyperparameters hold tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
