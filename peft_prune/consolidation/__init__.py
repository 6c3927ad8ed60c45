"""Consolidation: the restrained factors of all edits trained together, within the restraint's singular values."""

from .bound import SpectralBound
from .consolidate import Consolidated, consolidate
from .passages import Passage
from .protected import ProtectedFact, Protection, read_protected
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
