"""The command `peft-prune` (floor 5)."""

from .app import main

__all__ = ["main"]
