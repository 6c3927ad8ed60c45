"""`peft-prune demo`: sixty edits into the built-in model, or thirty into a real one, without and with PRUNE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from peft import get_peft_model
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..builtin import (
    ability_items,
    ability_names,
    builtin_model_path,
    edit_requests,
    held_out_texts,
    load_builtin_model,
    plain_texts,
)
from ..editors import Editor, SecondMoments, collect_second_moments, get_editor
from ..evaluation import EXTRACTORS, comparison_table, score_ability, without_subjects
from ..folders import whole_folder
from ..outputs import require_outputs
from ..requests import EditRequest
from ..session import EditSession
from ..tuner import PruneEditConfig
from .demonstration import (
    Course,
    CourseWatch,
    agreement,
    compared,
    condition_table,
    result,
    say_agreement,
    title,
)
from .models import print_json
from .places import BUILTIN
from .progress import progress_bar
from .real_demo import require_real, run_real

MARK = "demo.json"
LAYER = 0
"""Edits of the built-in model hardly take in its later layers."""
TEXTS = 3000
EDITS: Mapping[bool, int] = {True: 60, False: 30}
ALPHA: Mapping[bool, float] = {True: 1.5, False: 1.2}
"""Number of edits and base of the logarithm for the built-in model, and for a real one."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the adapter, the figure and the numbers.")] = Path(
        "demo-output"
    ),
    model: Annotated[
        str, typer.Option(help="'builtin', or a real model from a package of PyPI: smollm2 or gemma3.")
    ] = BUILTIN,
    requests: Annotated[
        Optional[Path],
        typer.Option(help="For a real model: facts to change, such as examples/facts.jsonl; the rest are to stand."),
    ] = None,
    text: Annotated[Optional[Path], typer.Option(help="For a real model: texts for perplexity.")] = None,
    edits: Annotated[
        Optional[int], typer.Option(help="Number of sequential edits; 60, or 30 of a real model, if not given.")
    ] = None,
    alpha: Annotated[
        Optional[float],
        typer.Option(help="Base of the restraint's logarithm, above 1; 1.5, or 1.2 of a real model, if not given."),
    ] = None,
    items: Annotated[int, typer.Option(help="For the built-in model: items of each ability in the table.")] = 60,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Edit the built-in model or a real one, restrain the accumulated update, and compare."""
    builtin = model == BUILTIN
    edits, alpha = EDITS[builtin] if edits is None else edits, ALPHA[builtin] if alpha is None else alpha
    if edits < 1 or items < 1:
        raise ValueError(f"edits: {edits} and items: {items} must be at least 1")
    console = Console(quiet=json_output)
    ours = (out / MARK).is_file()
    inputs = {"built-in model": builtin_model_path(), "requests": requests, "texts": text}
    require_outputs(folders={"out": out}, inputs=inputs, overwrite=ours)
    if builtin and (requests is not None or text is not None):
        raise ValueError("requests: the built-in model brings its own; they go with --model smollm2")
    given = None if builtin else require_real(model, requests, text, edits)
    with whole_folder(out, overwrite=ours) as folder:
        made = _run(folder, edits, alpha, items, console) if given is None else run_real(folder, given, alpha, console)
        (folder / MARK).write_text(json.dumps(made, indent=2))
    if json_output:
        print_json(made)
    else:
        typer.echo(f"Adapter, figure and numbers in {out}")


def _run(folder: Path, edits: int, alpha: float, items: int, console: Console) -> dict[str, Any]:
    base, tokenizer = load_builtin_model()
    requests = [EditRequest.from_record(record) for record in edit_requests(edits)]
    editor = get_editor("rome", model=base, layers=(LAYER,))
    config = PruneEditConfig(
        restraint="log",
        alpha=alpha,
        restrain_on="merge",
        layers_to_transform=list(editor.layers(base)),
        task_type="CAUSAL_LM",
    )
    statistics = _statistics(base, tokenizer, editor, requests)
    model = get_peft_model(base, config)

    def kept(edited: Any) -> float:
        return _mean_ability(edited, tokenizer)

    course = Course()
    course.measure(model, 0, kept)
    with progress_bar(quiet=console.quiet) as progress:
        watch = CourseWatch(course, len(requests), progress, kept)
        with EditSession(model, tokenizer, editor, statistics=statistics, callbacks=[watch], monitor=False) as session:
            outcomes = session.edit(requests)
    abilities = {name: ability_items(name, items, held_out=True, seed=1) for name in ability_names()}
    columns = compared(model, tokenizer, requests, quiet=console.quiet, texts=held_out_texts(), abilities=abilities)
    console.print(comparison_table({name: figures for name, (figures, _) in columns.items()}, title=title(outcomes)))
    console.print(condition_table(columns))
    course.draw(console, folder / "course.png")
    differences = agreement(model, load_builtin_model()[0], tokenizer, requests, folder / "adapter")
    say_agreement(console, differences)
    return result(outcomes, columns, course, differences)


def _statistics(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, editor: Editor, requests: list[EditRequest]
) -> SecondMoments:
    texts = without_subjects(plain_texts(TEXTS), requests)
    return collect_second_moments(base, tokenizer, texts, editor.modules(base), progress=False)


def _mean_ability(model: Any, tokenizer: PreTrainedTokenizerBase, items: int = 25) -> float:
    scores = [
        score_ability(model, tokenizer, ability_items(name, items, held_out=True), extract=EXTRACTORS[name]).value
        for name in ability_names()
    ]
    return sum(score or 0.0 for score in scores) / len(scores)
