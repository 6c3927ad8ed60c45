"""Perturbation-restrained sequential model editing as a PEFT method.

Importing this package registers the method ``PRUNE_EDIT`` with PEFT: at once where PEFT has been imported, else as soon
as it is. What the package hands out is imported when it is first asked for, so that its own import costs little.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from . import quiet  # noqa: F401 - before PEFT, which imports quantization libraries
from .errors import (
    AdapterError,
    CheckpointError,
    EditFailedError,
    HistoryError,
    HistoryLockedError,
    InvalidRequestError,
    MergeError,
    MissingPackageError,
    NonFiniteUpdateError,
    PeftPruneError,
    ProcessError,
    SessionStateError,
    UnsupportedModelError,
)
from .late import when_imported
from .requests import EditRequest, Question, load_requests

if TYPE_CHECKING:
    from .builtin import load_builtin_model
    from .consolidation import ConsolidationSettings
    from .editors import SecondMoments, Solving, collect_second_moments, editor_names, get_editor
    from .editors.own_texts import own_moments, own_texts
    from .evaluation import (
        MergeReport,
        comparison_table,
        load_ability,
        load_facts,
        load_texts,
        merge_report,
    )
    from .evaluation.evaluate import evaluate
    from .export import export_lora, lost_edits
    from .monitoring import (
        AbilityGuard,
        ConditionGuard,
        Monitor,
        NormGuard,
        OutputGuard,
        ProgressCallback,
        ProtectionGuard,
        SessionCallback,
        TrackerCallback,
        layer_conditions,
    )
    from .real import load_real_model
    from .reporting import adapter_report, audit_report, history_report, write_report
    from .session import (
        BatchFailedError,
        ConsolidationResult,
        EditResult,
        EditSession,
        History,
        adapter_of,
        attribute,
        calibrate_strengths,
        compare_adapters,
        compose,
        tune_restraint,
        verify,
    )
    from .tuner import PRUNE_EDIT, PruneEditConfig, PruneEditLayer, PruneEditModel

__version__ = "0.1.0"

__all__ = [
    "PRUNE_EDIT",
    "AbilityGuard",
    "AdapterError",
    "BatchFailedError",
    "CheckpointError",
    "ConditionGuard",
    "ConsolidationResult",
    "ConsolidationSettings",
    "EditFailedError",
    "EditRequest",
    "EditResult",
    "EditSession",
    "History",
    "HistoryError",
    "HistoryLockedError",
    "InvalidRequestError",
    "MergeError",
    "MergeReport",
    "MissingPackageError",
    "Monitor",
    "NonFiniteUpdateError",
    "NormGuard",
    "OutputGuard",
    "PeftPruneError",
    "ProcessError",
    "ProgressCallback",
    "ProtectionGuard",
    "PruneEditConfig",
    "PruneEditLayer",
    "PruneEditModel",
    "Question",
    "SecondMoments",
    "SessionCallback",
    "SessionStateError",
    "Solving",
    "TrackerCallback",
    "UnsupportedModelError",
    "adapter_of",
    "adapter_report",
    "attribute",
    "audit_report",
    "calibrate_strengths",
    "collect_second_moments",
    "compare_adapters",
    "comparison_table",
    "compose",
    "editor_names",
    "evaluate",
    "export_lora",
    "get_editor",
    "history_report",
    "layer_conditions",
    "load_ability",
    "load_builtin_model",
    "load_facts",
    "load_real_model",
    "load_requests",
    "load_texts",
    "lost_edits",
    "merge_report",
    "own_moments",
    "own_texts",
    "tune_restraint",
    "verify",
    "write_report",
]

_HOMES = MappingProxyType(
    {
        "builtin": "load_builtin_model",
        "consolidation": "ConsolidationSettings",
        "editors": "SecondMoments Solving collect_second_moments editor_names get_editor own_moments own_texts",
        "evaluation": "MergeReport comparison_table evaluate load_ability load_facts load_texts merge_report",
        "export": "export_lora lost_edits",
        "monitoring": (
            "AbilityGuard ConditionGuard Monitor NormGuard OutputGuard ProgressCallback ProtectionGuard "
            "SessionCallback TrackerCallback layer_conditions"
        ),
        "real": "load_real_model",
        "reporting": "adapter_report audit_report history_report write_report",
        "session": (
            "BatchFailedError ConsolidationResult EditResult EditSession History adapter_of attribute "
            "calibrate_strengths compare_adapters compose tune_restraint verify"
        ),
        "tuner": "PRUNE_EDIT PruneEditConfig PruneEditLayer PruneEditModel",
    }
)
"""The folders whose names are handed out when they are asked for."""


if not TYPE_CHECKING:  # a checker would take every misspelt name for one that is found here

    def __getattr__(name: str) -> Any:
        for home, names in _HOMES.items():
            if name in names.split():
                return getattr(import_module(f".{home}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


when_imported("peft", lambda: import_module(".tuner", __name__))  # which registers the method
