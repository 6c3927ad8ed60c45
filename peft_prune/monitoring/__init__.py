"""Figures of every edited layer, and callbacks that watch a session by them."""

from .callbacks import ACTIONS, Alert, BatchReport, Limit, SessionCallback
from .condition import (
    CONDITION_GROWTH,
    LAYER_FIGURES,
    OUTPUT_PERTURBATION,
    UPDATE_NORM,
    LayerCondition,
    Monitor,
    layer_conditions,
)
from .guards import AbilityGuard, ConditionGuard, NormGuard, OutputGuard
from .progress import ProgressCallback, TrackerCallback, batch_values
from .protection import PROTECTED, ProtectionGuard

__all__ = [
    "ACTIONS",
    "CONDITION_GROWTH",
    "LAYER_FIGURES",
    "OUTPUT_PERTURBATION",
    "PROTECTED",
    "UPDATE_NORM",
    "AbilityGuard",
    "Alert",
    "BatchReport",
    "ConditionGuard",
    "LayerCondition",
    "Limit",
    "Monitor",
    "NormGuard",
    "OutputGuard",
    "ProgressCallback",
    "ProtectionGuard",
    "SessionCallback",
    "TrackerCallback",
    "batch_values",
    "layer_conditions",
]
