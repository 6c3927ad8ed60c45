"""Audit of checkpoints that were edited or fine-tuned by any tool, and adapters made of their difference."""

from .checkpoint import Checkpoint, StoredTensor
from .compare import MatrixChange, OtherChange
from .extract import Extraction, extract
from .run import Audit, CheckpointAudit, audit, total_change

__all__ = [
    "Audit",
    "Checkpoint",
    "CheckpointAudit",
    "Extraction",
    "MatrixChange",
    "OtherChange",
    "StoredTensor",
    "audit",
    "extract",
    "total_change",
]
