"""The commands and what they have in common: bad input gives one line and exit code 2."""

from __future__ import annotations

import sqlite3
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import typer
from rich.console import Console
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from .. import __version__
from ..characters import visible
from ..errors import PeftPruneError
from .audit import audit
from .compose import compose
from .consolidate import consolidate
from .demo import demo
from .diff import diff
from .edit import edit
from .evaluate import evaluate
from .experiment import experiment
from .export import export
from .harness import harness
from .locate import locate
from .merge import merge
from .options import SeveralValues
from .push import push
from .report import report
from .restrain import restrain
from .resume import resume
from .show_history import history
from .tune import tune
from .undo import undo

# typer carries its own copy of click, whose base of all usage errors has no public name
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended; what typer makes of it is returned, not raised."""

app = typer.Typer(
    name="peft-prune",
    help="Edit facts in a language model, keep the model whole, and measure both.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    demo,
    locate,
    edit,
    resume,
    harness,
    history,
    undo,
    tune,
    restrain,
    consolidate,
    compose,
    diff,
    merge,
    export,
    push,
    report,
)
for command in COMMANDS:
    app.command()(command)
for several in (evaluate, experiment, audit):
    app.command(cls=SeveralValues)(several)


@app.callback(invoke_without_command=True)
def options(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 1 failed, 2 bad input, 130 interrupted)."""
    command = typer.main.get_command(app)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # what it warns of while it loads is checked, and named, here
    # PEFT asks models for a name that transformers has retired
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    # it looks for the built-in model on the Hub, to compare vocabularies, and without a network it says so
    warnings.filterwarnings("ignore", message="Could not find a config file in builtin ")
    # what a target that is tied to the embeddings means is said here, in one line
    warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
    try:
        result = command.main(
            list(sys.argv[1:] if arguments is None else arguments), "peft-prune", standalone_mode=False
        )
    except typer.Abort:
        return _complain("interrupted", INTERRUPTED)
    except _USAGE_ERROR as error:
        return _complain(error.format_message(), error.exit_code)
    except (PeftPruneError, ValueError, OSError) as error:
        return _complain(" ".join(str(error).split()), 2)
    except (sqlite3.Error, SafetensorError) as error:
        # both speak of files that were given; the places that read them name the file, but for one that changes
        return _complain(f"a file cannot be read or written: {' '.join(str(error).split())}", 2)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except (MemoryError, torch.OutOfMemoryError) as error:
        return _complain(f"out of memory: {str(error).strip().partition(chr(10))[0]}", 1)
    if result == INTERRUPTED:
        return _complain("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _complain(message: str, code: int) -> int:
    Console(stderr=True, soft_wrap=True).print(f"peft-prune: {visible(message)}", markup=False, highlight=False)
    return code
