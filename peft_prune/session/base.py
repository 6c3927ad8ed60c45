"""Whether a model is the one that a history is about, and nothing but that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel

from ..errors import AdapterError, HistoryError
from ..models.decoder import unwrapped
from ..models.fingerprint import base_fingerprint, modules_in, same_base, short_form
from ..models.naming import model_name
from ..tuner.beneath import adapters_beneath, methods_without_layers, other_adapters


def require_base(facts: Mapping[str, Any], model: Any, history: str | Path) -> None:
    """Raise HistoryError where the model is not the one that these facts of a history are about."""
    made_for = facts["base"]
    try:
        found = base_fingerprint(model, modules_in(made_for))
        is_same = made_for is None or same_base(made_for, found)
    except AdapterError as error:
        raise HistoryError(f"history: {history}: {error}") from None
    if not is_same:
        raise HistoryError(
            f"history: {history} belongs to {facts['model']} (weights {short_form(made_for)}), the model is "
            f"{model_name(unwrapped(model))} (weights {short_form(found)})"
        )


def require_bare(model: Any) -> None:
    """Raise AdapterError where a model carries an adapter that a session has not put there: its base is not bare.

    Figures of before are taken with all adapters off, and a history can be gone on with only where its base can be had
    again, so an adapter of another method, or one that transformers has attached, is merged or left out first.
    """
    if isinstance(model, PeftModel):
        found = methods_without_layers(model) or adapters_beneath(model)
    else:
        found = other_adapters(model)
    if found:
        raise AdapterError(
            f"model: it carries an adapter ({', '.join(word.partition(':')[0] for word in found)}); a session needs "
            "the base alone: merge that adapter into it, or load it without"
        )
