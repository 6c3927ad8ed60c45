"""`peft-prune push`: publish an adapter on the Hub."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .options import JsonOutput
from .plain import close_with


def push(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter, or user/name[@revision] on the Hub.")],
    repository: Annotated[str, typer.Argument(help="Where to: user/name.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who sees a repository that is new.")] = True,
    revision: Annotated[Optional[str], typer.Option(help="Branch to write; made where it is missing.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the change as a pull request.")] = False,
    message: Annotated[Optional[str], typer.Option(help="Message of the commit.")] = None,
    also_lora: Annotated[
        bool, typer.Option("--also-lora", help="Put the same update as a plain LoRA beside it, in lora/.")
    ] = False,
    evaluation: Annotated[
        Optional[Path], typer.Option(help="What `peft-prune evaluate --json` printed, for the card.")
    ] = None,
    history: Annotated[
        Optional[Path], typer.Option(help="With --no-redact: the history whose edits the card lists.")
    ] = None,
    redact: Annotated[
        bool, typer.Option(help="Keep edits, and names of your own, out of the card; off lists them in the clear.")
    ] = True,
    overwrite: Annotated[bool, typer.Option(help="Put a commit on a repository that holds files already.")] = False,
    json_output: JsonOutput = False,
) -> None:
    """Publish an adapter with its card. The history is never uploaded; the token is that of `hf auth login`."""
    from ..hub import Destination, adapter_folder, push_folder
    from .models import print_json

    destination = Destination(repository, private, revision, create_pr, message, overwrite)
    if history is not None and redact:
        raise ValueError("history: its edits are listed in the card with --no-redact alone")
    found = None if evaluation is None else _evaluation(evaluation)
    folder = adapter_folder(adapter)
    url = push_folder(
        folder,
        destination,
        also_lora=also_lora,
        prepare=partial(_complete, found=found, redact=redact, history=history),
    )
    if json_output:
        print_json({"adapter": str(adapter), "repository": repository, "url": url, "redacted": redact})
    else:
        close_with(f"{adapter} is published: {url}")


def _complete(folder: Path, *, found: dict[str, Any] | None, redact: bool, history: Path | None) -> None:
    from ..hub import write_edits, write_measured
    from ..session import History

    if found is not None:
        write_measured(folder, found, redact=redact)
    if history is not None:
        with History.read(history) as log:
            write_edits(folder / "README.md", log)


def _evaluation(path: Path) -> dict[str, Any]:
    from ..hub.measured import figures_of

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        figures_of(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"evaluation: {path}: {error}") from None
    found: dict[str, Any] = content
    return found
