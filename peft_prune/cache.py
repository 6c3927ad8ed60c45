"""Where what was worked out once is kept for later."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PEFT_PRUNE_CACHE"
"""The environment variable that names another folder."""


def cache_folder() -> Path:
    """$PEFT_PRUNE_CACHE, else ``peft_prune`` beside the Hub's own cache ($HF_HOME)."""
    from huggingface_hub import constants

    given = os.environ.get(VARIABLE)
    return Path(given) if given else Path(constants.HF_HOME) / "peft_prune"
