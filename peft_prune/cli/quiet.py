"""What libraries say of themselves while a command works is kept off the terminal; what matters of it is said here."""

from __future__ import annotations

import logging
import warnings
from types import MappingProxyType

from ..late import when_imported

_SAID_HERE = MappingProxyType(
    {
        # PEFT asks models for a name that transformers has retired
        ".*is_gradient_checkpointing": FutureWarning,
        # it looks for the built-in model on the Hub, to compare vocabularies, and without a network it says so
        "Could not find a config file in builtin ": UserWarning,
        # what a target that is tied to the embeddings means is said here, in one line
        "Model with `tie_word_embeddings=True`": UserWarning,
    }
)
"""Warnings of libraries, by their beginning, that tell a user nothing to act on."""


def quiet_libraries() -> None:
    """Hide progress bars and log lines of libraries, now or as soon as they are imported."""
    # it says at its import which of its faster kernels it could not fetch; what is missing in earnest is an error
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    when_imported("transformers.utils.logging", _quiet_transformers)
    for message, category in _SAID_HERE.items():
        warnings.filterwarnings("ignore", message=message, category=category)


def _quiet_transformers() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # what it warns of while it loads is checked, and named, here
