"""The adapter of a history, for looking at it: nothing is written, and no session is opened."""

from __future__ import annotations

from typing import Any

from peft import get_peft_model

from ..tuner import PruneEditConfig
from .base import require_bare, require_base
from .history import History
from .replay import additions, replay


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
    stored = {name: value for name, value in facts["config"].items() if value is not None}
    edited = get_peft_model(model, PruneEditConfig(task_type="CAUSAL_LM", **stored)).eval()
    replay(edited, additions(history.edits(standing=True), history.factors), history.restraints())
    return edited
