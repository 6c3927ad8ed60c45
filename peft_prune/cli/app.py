"""The commands and what they have in common: bad input gives one line and exit code 2."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer

from .. import __version__
from ..errors import PeftPruneError
from .ask import ask
from .audit import audit
from .command import Commands, SeveralValues, epilog, with_shared_options
from .compose import compose
from .consolidate import consolidate
from .demo import demo
from .diff import diff
from .doctor import doctor
from .edit import edit
from .evaluate import evaluate
from .examples import EXAMPLES
from .experiment import experiment
from .export import export
from .harness import harness
from .inspect import inspect
from .launched import speaks_of
from .locate import locate
from .merge import merge
from .plain import say
from .push import push
from .quiet import quiet_libraries, say_own_warnings
from .report import report
from .restrain import restrain
from .resume import resume
from .show_editors import editors
from .show_history import history
from .tune import tune
from .undo import undo

# typer carries its own copy of click, whose base of all usage errors has no public name
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended; what typer makes of it is returned, not raised."""

app = typer.Typer(
    name="peft-prune",
    cls=Commands,
    help="Edit facts in a language model, keep the model whole, and measure both.",
    epilog="peft-prune COMMAND --help shows a command's options and an example.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

GROUPS: Mapping[str, Sequence[Callable[..., Any]]] = {
    "Begin": (demo, doctor, editors, locate),
    "Edit": (edit, resume, undo, tune, restrain, consolidate),
    "Ask and measure": (ask, evaluate, harness, experiment),
    "See what happened": (history, inspect, report, audit),
    "Several adapters": (compose, diff),
    "Bring it elsewhere": (merge, export, push),
}
"""Every command, by what it is for."""
SEVERAL = (evaluate, experiment, audit)
"""Those that take several values behind one name: ``--edited A B C``."""
for _title, _commands in GROUPS.items():
    for _command in _commands:
        app.command(
            _command.__name__,
            cls=SeveralValues if _command in SEVERAL else None,
            rich_help_panel=_title,
            epilog=epilog(EXAMPLES[_command.__name__]),
        )(with_shared_options(_command))


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and leave.", is_eager=True, callback=_print_version
    ),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 1 failed, 2 bad input, 130 interrupted).

    Args:
        arguments: What follows the command's name; the process's own if not given.
    """
    command = typer.main.get_command(app)
    quiet_libraries()
    if arguments is None:  # the process is this command's own
        say_own_warnings()
    try:
        result = command.main(
            list(sys.argv[1:] if arguments is None else arguments), "peft-prune", standalone_mode=False
        )
    except typer.Abort:
        return _complain("interrupted", INTERRUPTED)
    except _USAGE_ERROR as error:
        return _complain(error.format_message(), error.exit_code, error)
    except (PeftPruneError, ValueError, OSError) as error:
        return _complain(" ".join(str(error).split()), 2, error)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except Exception as error:
        return _complain_of(error)
    if result == INTERRUPTED:
        return _complain("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _complain_of(error: Exception) -> int:
    """Say what is known of; a fault of this package's own goes on as it is."""
    from safetensors import SafetensorError

    torch = sys.modules.get("torch")  # what has not been imported has raised nothing
    if isinstance(error, (sqlite3.Error, SafetensorError)):
        # both speak of files that were given; the places that read them name the file, but for one that changes
        return _complain(f"a file cannot be read or written: {' '.join(str(error).split())}", 2, error)
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return _complain(f"out of memory: {str(error).strip().partition(chr(10))[0]}", 1, error)
    raise error


def _complain(message: str, code: int, error: BaseException | None = None) -> int:
    if error is not None and not speaks_of(error):
        return 0
    say(f"peft-prune: {message}", err=True)
    return code
