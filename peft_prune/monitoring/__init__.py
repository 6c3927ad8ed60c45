"""Figures of every edited layer, and callbacks that watch a session by them."""

from .callbacks import ACTIONS, CONDITION_GROWTH, Alert, BatchReport, Limit, SessionCallback
from .condition import LayerCondition, Monitor, layer_conditions
from .guards import AbilityGuard, ConditionGuard
from .progress import ProgressCallback, TrackerCallback, batch_values

__all__ = [
    "ACTIONS",
    "CONDITION_GROWTH",
    "AbilityGuard",
    "Alert",
    "BatchReport",
    "ConditionGuard",
    "LayerCondition",
    "Limit",
    "Monitor",
    "ProgressCallback",
    "SessionCallback",
    "TrackerCallback",
    "batch_values",
    "layer_conditions",
]
