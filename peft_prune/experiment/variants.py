"""Make the adapter's factors those of a variant, and put them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..session import EditSession, calibrate_strengths
from ..session.replay import additions, replay
from .plan import Variant


@contextmanager
def as_variant(session: EditSession, variant: Variant, strengths: Callable[[], dict[int, float]]) -> Iterator[None]:
    """The session's model holds its accumulated factors in the form of ``variant``; afterwards it is as before.

    Args:
        session: Its adapter's schedule is "merge" or "every", so that the raw factors are known.
        variant: What to make of them.
        strengths: Gives the least sufficient strength of every edit; called for "strengths" only.
    """
    model = session.model
    adapter = model.one_adapter(None)
    state, config = model.edit_state(), session.config
    fields = {name: getattr(config, name) for name in ("restraint", "alpha", "restraint_pattern")}
    try:
        if variant.kind == "strengths":
            factors = strengths()
            records = [
                replace(record, strength=factors[record.leader or record.id])
                for record in session.history.edits(standing=True)
            ]
            replay(model, additions(records, session.history.factors), [])
        model.set_restraints(dict.fromkeys((name for name, _ in model.edited_layers()), variant.restraint))
        model.restrain()
        if variant.kind == "matched":
            for _, layer in model.edited_layers():
                _scale_to_norm(layer, adapter)
        yield
    finally:
        for name, value in fields.items():
            setattr(config, name, value)
        model.restore_edit_state(state)


def least_strengths(session: EditSession, margin: float) -> dict[int, float]:
    """Least sufficient strength of every edit by its number; those that cannot have the margin keep 1."""
    return calibrate_strengths(session, margin, apply=False, progress=False).strengths


def _scale_to_norm(layer: Any, adapter: str) -> None:
    """Make the update all of the raw one, scaled to the spectral norm that the restraint has left."""
    raw, norm = layer.raw_update(adapter), layer.effective_update(adapter).spectral_norm()
    full = raw.spectral_norm()
    layer.set_raw_update(adapter, raw.scaled(norm / full) if full > 0 else raw, edits=0)
