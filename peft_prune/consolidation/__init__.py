"""Consolidation: the restrained factors of all edits trained together, within the restraint's singular values."""

from .bound import SpectralBound
from .passages import Passage
from .protected import ProtectedFact, Protection, read_protected
from .run import Consolidated, consolidate
from .settings import ConsolidationSettings
from .training import Material, Seen, Step, Trained, train

__all__ = [
    "Consolidated",
    "ConsolidationSettings",
    "Material",
    "Passage",
    "ProtectedFact",
    "Protection",
    "Seen",
    "SpectralBound",
    "Step",
    "Trained",
    "consolidate",
    "read_protected",
    "train",
]
