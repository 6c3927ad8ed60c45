"""Edits applied one after another, each one verified (floor 3)."""

from .sequence import EditOutcome, edit_in_sequence

__all__ = ["EditOutcome", "edit_in_sequence"]
