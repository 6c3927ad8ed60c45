"""Audit of checkpoints that were edited or fine-tuned by any tool, and adapters made of their difference."""

from .checkpoint import Checkpoint, StoredTensor
from .compare import MatrixChange, OtherChange
from .extract import Extraction, Rule, extract, require_apart
from .run import Audit, CheckpointAudit, audit, total_change

__all__ = [
    "Audit",
    "Checkpoint",
    "CheckpointAudit",
    "Extraction",
    "MatrixChange",
    "OtherChange",
    "Rule",
    "StoredTensor",
    "audit",
    "extract",
    "require_apart",
    "total_change",
]
