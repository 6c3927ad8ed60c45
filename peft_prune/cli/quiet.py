"""What libraries say of themselves while a command works is kept off the terminal; what matters of it is said here."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from ..late import when_imported
from .plain import say

PACKAGE = Path(__file__).resolve().parents[1]

_SAID_HERE = MappingProxyType(
    {
        # PEFT asks models for a name that transformers has retired
        ".*is_gradient_checkpointing": FutureWarning,
        # it looks for the base's config.json, to compare vocabularies, which edits leave alone: a model with a name of
        # its own has none on the Hub, and one in a GGUF file none in its folder
        "Could not find a config file in ": UserWarning,
        # what a target that is tied to the embeddings means is said here, in one line
        "Model with `tie_word_embeddings=True`": UserWarning,
    }
)
"""Warnings of libraries, by their beginning, that tell a user nothing to act on."""


def quiet_libraries() -> None:
    """Hide progress bars and log lines of libraries, now or as soon as they are imported."""
    # they say which faster kernels could not be fetched, and how a model was handed over; what is wrong they raise
    for name in ("bitsandbytes", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    when_imported("transformers.utils.logging", _quiet_transformers)
    when_imported("datasets", _quiet_datasets)
    for message, category in _SAID_HERE.items():
        warnings.filterwarnings("ignore", message=message, category=category)


def _quiet_transformers() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # what it warns of while it loads is checked, and named, here


def _quiet_datasets() -> None:
    from datasets.utils.tqdm import disable_progress_bars

    disable_progress_bars()


@contextmanager
def only_shown(shown: bool) -> Iterator[None]:
    """For a block in which a library draws bars of its own: only on a terminal, and only where ``shown``.

    Nor do programs that it runs say anything, such as git of a folder that is no repository.
    """
    from tqdm import tqdm

    begin: Any = tqdm.__init__
    bars: Any = tqdm
    hidden = not (shown and sys.stderr.isatty())

    def begin_hidden(bar: Any, *arguments: Any, **options: Any) -> None:
        begin(bar, *arguments, **{**options, "disable": True})

    if hidden:
        bars.__init__ = begin_hidden
    try:
        with _silent_programs():
            yield
    finally:
        bars.__init__ = begin


@contextmanager
def _silent_programs() -> Iterator[None]:
    """Keep what is written to the descriptor of standard error itself, and not by this interpreter, from it."""
    sys.stderr.flush()
    own, kept = sys.stderr, os.dup(2)
    with open(os.devnull, "w") as nowhere, os.fdopen(os.dup(2), "w") as ours:
        os.dup2(nowhere.fileno(), 2)
        try:
            with redirect_stderr(ours if own is sys.__stderr__ else own):
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def say_own_warnings() -> None:
    """Print this package's warnings as its other lines, and none of the libraries'.

    What libraries warn of is shown where PYTHONWARNINGS or ``python -W`` asks for it.
    """
    if not sys.warnoptions:
        warnings.showwarning = _show


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if PACKAGE in Path(filename).resolve().parents:
        say(f"peft-prune: warning: {' '.join(str(message).split())}", err=True)
