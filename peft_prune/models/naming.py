"""What a model is called where others read it: a Hub name, or a folder's own name, never a path of this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_CACHED = re.compile(r"[\\/]models--([^\\/]+?)(?:--([^\\/]+))?[\\/]snapshots[\\/]")
_LOCAL = re.compile(r"^[~./\\]|^[A-Za-z]:[\\/]|\\|/.*/|/$")


def public_name(given: str | None) -> str | None:
    """The name under which a model is stated in files.

    Args:
        given: What it was loaded from: a Hub name is kept, of a folder only its own name is, and of a folder in the
            Hub's cache the Hub name is.
    """
    if not given:
        return None
    cached = _CACHED.search(given + "/")
    if cached:
        return "/".join(part for part in cached.groups() if part)
    folder = Path(given).expanduser()
    if folder.exists() or _LOCAL.search(given):
        return folder.resolve().name.rpartition("\\")[2] or None
    return given


def model_name(model: Any) -> str:
    """The public name of a transformers model, or that of its class where it was not loaded from anywhere."""
    return public_name(str(getattr(model, "name_or_path", "") or "")) or type(model).__name__
