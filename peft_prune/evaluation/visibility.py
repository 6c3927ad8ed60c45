"""Both the base and the edits of a model must be there to be seen."""

from __future__ import annotations

import warnings

from peft import PeftModel

from ..tuner import PruneEditModel


def require_visible_edits(model: PeftModel) -> None:
    """Check that disabling the adapter gives the base, and enabling it the edits.

    Raises:
        ValueError: The adapter is merged or disabled.
    """
    status = model.get_model_status()
    if status.merged_adapters:
        raise ValueError(
            f"model: adapters {status.merged_adapters} are merged into the base, whose own outputs are needed; "
            "call unmerge_adapter() first"
        )
    if status.enabled is not True:
        raise ValueError("model: its adapter is disabled, so the edits could not be seen; enable it first")


def warn_of_pending_restraint(model: PeftModel) -> None:
    """Warn where saving or merging would restrain the model first, so that figures taken now are of another one."""
    tuner = model.base_model
    if isinstance(tuner, PruneEditModel) and len(tuner.active_adapters) == 1 and tuner.restraint_is_pending():
        warnings.warn(
            "a restraint is pending: the figures are of the unrestrained edits, and saving or merging restrains them "
            "first; call restrain() to measure what leaves"
        )
