"""Sessions: edits that are verified, written to a history, watched, undone, and tuned in strength."""

from .attribution import Attribution, attribute
from .composition import AdapterComparison, Conflict, EditComparison, compare_adapters, compare_edits, compose
from .consolidating import ConsolidationResult
from .history import History
from .reading import adapter_of
from .records import STATES, EditRecord, Factors, Look, state_seen
from .results import BatchFailedError, EditResult
from .session import EditSession
from .strengths import Calibration, calibrate_strengths
from .tuning import TradeOff, TradeOffs, tune_restraint
from .verification import Verification, verify

__all__ = [
    "STATES",
    "AdapterComparison",
    "Attribution",
    "BatchFailedError",
    "Calibration",
    "Conflict",
    "ConsolidationResult",
    "EditComparison",
    "EditRecord",
    "EditResult",
    "EditSession",
    "Factors",
    "History",
    "Look",
    "TradeOff",
    "TradeOffs",
    "Verification",
    "adapter_of",
    "attribute",
    "calibrate_strengths",
    "compare_adapters",
    "compare_edits",
    "compose",
    "state_seen",
    "tune_restraint",
    "verify",
]
