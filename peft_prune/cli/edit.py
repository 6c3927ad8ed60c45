"""`peft-prune edit`: edit a model in sequence and save the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from peft import get_peft_model
from rich.console import Console

from ..editors import Editor, SecondMoments, collect_second_moments, get_editor
from ..errors import EditFailedError
from ..evaluation import load_texts, without_subjects
from ..requests import EditRequest, load_requests
from ..session import EditOutcome, edit_in_sequence
from ..tuner import PruneEditConfig
from .models import load_model, load_tokenizer, print_json, whole_folder
from .progress import progress_bar


def edit(
    model: Annotated[str, typer.Option(help="Model to edit: a folder or a Hub name.")],
    requests: Annotated[Path, typer.Option(help="Edit requests: CounterFact records or flat objects, JSON or JSONL.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    editor: Annotated[str, typer.Option(help="Editing method.")] = "rome",
    layers: Annotated[Optional[str], typer.Option(help="Layers to edit, such as 2 or 13,14,15; found by a rule if not given.")] = None,
    limit: Annotated[Optional[int], typer.Option(help="Use the first so many requests only.")] = None,
    stats_text: Annotated[
        Optional[Path],
        typer.Option(help="Texts for the second moment: a JSON list of strings or of {prompt, object}, or a .txt file. "
                     "Texts that name an edited subject are left out."),
    ] = None,
    stats: Annotated[Optional[Path], typer.Option(help="A second moment saved earlier, in place of --stats-text.")] = None,
    restraint: Annotated[str, typer.Option(help="log, linear, clip, scale or none.")] = "log",
    alpha: Annotated[float, typer.Option(help="Base of the logarithm of 'log', above 1.")] = 1.2,
    restrain_on: Annotated[str, typer.Option(help="When it acts: every, merge, threshold or compounding.")] = "every",
    restrain_every: Annotated[int, typer.Option(help="Edits between two restraints.")] = 10,
    max_rank: Annotated[Optional[int], typer.Option(help="Upper limit of a layer's rank.")] = None,
    set_: Annotated[
        Optional[list[str]], typer.Option("--set", help="A hyperparameter of the editor as name=value; repeatable.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Dtype to load the model in; 'auto' keeps its own.")] = "float32",
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Edit facts one after another, verify each, and save the adapter that holds them."""
    records = load_requests(requests, limit=limit)
    config = PruneEditConfig(
        restraint=restraint, alpha=alpha, restrain_on=restrain_on, restrain_every=restrain_every,  # type: ignore[arg-type]
        max_rank=max_rank, task_type="CAUSAL_LM", base_model_name_or_path=model,
    )
    method = get_editor(editor, **_hyperparameters(layers, set_ or []))
    with whole_folder(out, overwrite=overwrite) as folder:
        outcomes = _edit_and_save(model, dtype, config, method, records, stats_text, stats, folder)
    _report(outcomes, out, json_output)
    if not any(outcome.applied for outcome in outcomes):
        raise EditFailedError(f"none of {len(outcomes)} edits took")
