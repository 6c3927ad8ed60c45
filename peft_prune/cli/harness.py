"""`peft-prune harness`: tasks of lm-evaluation-harness before and after the edits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .options import Dtype, GgufFile, JsonOutput
from .placement import Placement, placed
from .places import in_gguf
from .plain import plain, shows_progress
from .quiet import only_shown

if TYPE_CHECKING:
    from rich.table import Table


@placed
def harness(
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hub name.")],
    adapter: Annotated[Path, typer.Option(help="Folder of the adapter, or user/name[@revision] on the Hub.")],
    tasks: Annotated[str, typer.Option(help="Names of tasks, with commas between them.")],
    include_path: Annotated[Optional[Path], typer.Option(help="Folder with task files of your own.")] = None,
    num_fewshot: Annotated[
        Optional[int], typer.Option(help="Solved items before each prompt; the task's own number if not given.")
    ] = None,
    limit: Annotated[Optional[int], typer.Option(help="Use the first so many items of each task.")] = None,
    batch_size: Annotated[int, typer.Option(help="Requests in one batch.")] = 8,
    gguf_file: GgufFile = None,
    dtype: Dtype = "float32",
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Run tasks of lm-evaluation-harness on the base model and on the edited one."""
    from rich.console import Console

    from ..evaluation import harness_figures
    from .models import load_adapter, load_model, load_tokenizer, print_json

    model = in_gguf(model, gguf_file)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    edited = load_adapter(load_model(model, dtype, placement), adapter)
    with only_shown(shows_progress(json_output)):
        found = harness_figures(
            edited,
            load_tokenizer(model),
            names,
            include_path=include_path,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=batch_size,
        )
    if json_output:
        print_json(found)
    else:
        Console().print(_table(found))


def _table(found: dict[str, Any]) -> Table:
    from rich.table import Table

    from ..evaluation import signed

    table = Table(title="Tasks of lm-evaluation-harness, with standard errors; difference with its 95 % interval")
    table.add_column("task")
    for heading in ("before", "after", "difference"):
        table.add_column(heading, justify="right")
    for task, metrics in found["before"].items():
        for metric, before in metrics.items():
            arrow = {True: " ↑", False: " ↓"}.get(before["higher_is_better"], "")
            gap = found["difference"].get(task, {}).get(metric)
            table.add_row(
                plain(f"{task}: {metric}{arrow}" + ("" if before["n"] is None else f" (n = {before['n']})")),
                _cell(before),
                _cell(found["after"][task][metric]),
                signed(gap) or "–",
            )
    return table


def _cell(figure: dict[str, Any]) -> str:
    error = "" if figure["stderr"] is None else f" ± {figure['stderr']:.3f}"
    return f"{figure['value']:.3f}{error}"
