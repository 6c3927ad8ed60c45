"""Editing methods: requests in, low-rank updates out (floor 2)."""

from .base import Edit, Editor, Prepared, editor_names, get_editor, register_editor
from .contexts import generate_contexts
from .rome import ROME, ROMEHyperparameters
from .second_moment import SecondMoments, collect_second_moments

__all__ = [
    "ROME",
    "Edit",
    "Editor",
    "Prepared",
    "ROMEHyperparameters",
    "SecondMoments",
    "collect_second_moments",
    "editor_names",
    "generate_contexts",
    "get_editor",
    "register_editor",
]
