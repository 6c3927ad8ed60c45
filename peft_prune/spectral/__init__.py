"""Floor 0: the mathematics of low-rank updates and their restraint; tensors in, tensors out, torch alone."""

from .accumulation import GrownGram, accumulated, dense_form, is_dense_form
from .basis import cosine_transform, in_own_basis
from .comparison import Comparison, compare_updates, reduced, weighted_sum
from .condition import ConditionNumber, ConditionReport, ProjectedUpdate, Reference
from .directions import DirectionalRestraint, DirectionFilter
from .lowrank import LowRankUpdate, Spectrum, energy_rank, reorthogonalize, truncate
from .norms import CountedNorm, counted_sigma_max, sigma_max
from .output import OutputPerturbation
from .restraint import (
    ClipRestraint,
    LinearRestraint,
    LogRestraint,
    NoRestraint,
    Restraint,
    ScaleRestraint,
    get_restraint,
    parse_restraint,
    register_restraint,
    restrain,
    restrain_by_gram,
    restrain_with_change,
    restraint_names,
    restraint_text,
)
from .rounding import RoundingErrors, noise_edge, rounding_variances
from .streaming import StripGram, effective_rank

__all__ = [
    "ClipRestraint",
    "Comparison",
    "ConditionNumber",
    "ConditionReport",
    "CountedNorm",
    "DirectionFilter",
    "DirectionalRestraint",
    "GrownGram",
    "LinearRestraint",
    "LogRestraint",
    "LowRankUpdate",
    "NoRestraint",
    "OutputPerturbation",
    "ProjectedUpdate",
    "Reference",
    "Restraint",
    "RoundingErrors",
    "ScaleRestraint",
    "Spectrum",
    "StripGram",
    "accumulated",
    "compare_updates",
    "cosine_transform",
    "counted_sigma_max",
    "dense_form",
    "effective_rank",
    "energy_rank",
    "get_restraint",
    "in_own_basis",
    "is_dense_form",
    "noise_edge",
    "parse_restraint",
    "reduced",
    "register_restraint",
    "reorthogonalize",
    "restrain",
    "restrain_by_gram",
    "restrain_with_change",
    "restraint_names",
    "restraint_text",
    "rounding_variances",
    "sigma_max",
    "truncate",
    "weighted_sum",
]
