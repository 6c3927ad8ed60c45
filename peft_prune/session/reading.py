"""The adapter of a history, for looking at it: nothing is written, and no session is opened."""

from __future__ import annotations

from typing import Any

from peft import get_peft_model

from .base import require_bare, require_base
from .facts import config_of
from .history import History
from .replay import additions, fitting, replay


def adapter_of(history: History, model: Any) -> Any:
    """``model`` with the adapter that the history describes, as a session that resumes would have it.

    Args:
        history: Open for reading is enough.
        model: The unedited base model.

    Raises:
        HistoryError: The history belongs to another model, or its factors are damaged.
        AdapterError: The model carries an adapter already.
    """
    facts = history.meta
    require_base(facts, model, history.path or "in memory")
    require_bare(model)
    edited = get_peft_model(model, config_of(facts, history.path or "in memory")).eval()
    records = history.edits(standing=True)
    steps = additions(records, fitting(edited, history.factors))
    replay(edited, steps, history.restraints(), history.standing_consolidation(records))
    return edited
