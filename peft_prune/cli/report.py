"""`peft-prune report`: one HTML file about a history or an adapter, for people who do not read code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..folders import recover
from ..outputs import require_outputs
from ..requests import EditRequest
from .options import Dtype, GgufFile
from .placement import Placement, placed
from .places import in_optional_gguf
from .plain import close_with
from .progress import progress_bar
from .requested import OnBadRecord, requested

if TYPE_CHECKING:
    from ..reporting import Report
    from ..session import History


@placed
def report(
    source: Annotated[
        Path, typer.Argument(help="SQLite file of a session, or folder of an adapter.", metavar="HISTORY_OR_ADAPTER")
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write; one that exists is replaced.")] = Path("report.html"),
    model: Annotated[
        Optional[str],
        typer.Option(help="The unedited base model, to ask it again now; without it the report says what is on file."),
    ] = None,
    requests: Annotated[
        Optional[Path], typer.Option(help="For an adapter: the requests that it was edited with, to be asked again.")
    ] = None,
    limit: Annotated[Optional[int], typer.Option(help="With --requests: the first so many only.")] = None,
    on_bad_record: OnBadRecord = "fail",
    facts: Annotated[Optional[Path], typer.Option(help="With --model: facts the base knows, for recall.")] = None,
    text: Annotated[Optional[Path], typer.Option(help="With --model: texts for perplexity.")] = None,
    abilities: Annotated[
        Optional[list[Path]], typer.Option(help="With --model: file of a general ability; repeatable.")
    ] = None,
    items: Annotated[int, typer.Option("--ability-items", help="Items of each ability that are used.")] = 100,
    max_growth: Annotated[
        Optional[float], typer.Option(help="Growth of the condition number to judge by, in place of the guards' limit.")
    ] = None,
    redact: Annotated[
        bool, typer.Option(help="Replace subjects, answers, people, paths and names of your own by codes.")
    ] = False,
    redact_key: Annotated[
        Optional[str],
        typer.Option(
            help="A secret of your own, so that the codes of several reports can be compared; implies --redact."
        ),
    ] = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = "float32",
    json_output: Annotated[bool, typer.Option("--json", help="Print the report's words and numbers as JSON.")] = False,
    *,
    placement: Placement,
) -> None:
    """Write a report: edits, what became of them, and how the model bears them."""
    from ..evaluation import load_facts, load_texts
    from ..hub import HubName, adapter_folder
    from ..reporting import Now, adapter_report, history_report, require_report, write_report
    from ..reporting.limits import limits_of
    from ..reporting.redaction import Redactor
    from ..session import History, adapter_of
    from .models import (
        load_abilities,
        load_adapter,
        load_model,
        load_tokenizer,
        print_json,
        require_dtype,
        require_items,
    )

    model = in_optional_gguf(model, gguf_file)
    given = {"facts": facts, "text": text, "abilities": abilities}
    if HubName.of(source) is not None:
        source = adapter_folder(source)
    _check_options(source, model, requests, limit, given)
    require_items(items)
    require_dtype(dtype)
    require_report(out)
    inputs = {"model": model, "requests": requests, "facts": facts, "texts": text, "abilities": abilities}
    require_outputs(files={"out": out}, inputs={"source": source, **inputs})
    limits_of({}, max_growth)
    if redact or redact_key is not None:
        Redactor(redact_key)  # a bad key shows before a model is loaded
    options: dict[str, Any] = {"max_growth": max_growth, "redact": redact or redact_key is not None}
    options["redact_key"] = redact_key
    material: dict[str, Any] = {
        "facts": None if facts is None else load_facts(facts),
        "texts": None if text is None else load_texts(text),
        "abilities": load_abilities(abilities or (), items) or None,
    }
    with progress_bar(quiet=json_output) as progress:
        if source.is_dir():
            asked = _numbered(requests, limit, on_bad_record)
            now = None
            if model is not None:
                edited = load_adapter(load_model(model, dtype, placement), source)
                now = Now.of(edited, load_tokenizer(model), asked, progress=progress, **material)
            made = adapter_report(source, now=now, requests=asked, **options)
        else:
            with History.read(source) as history:
                now = None
                if model is not None:
                    edited = adapter_of(history, load_model(model, dtype, placement))
                    now = Now.of(edited, load_tokenizer(model), _standing(history), progress=progress, **material)
                made = history_report(history, now=now, **options)
    write_report(made, out)
    if json_output:
        print_json(as_json(made, out))
        return
    close_with(f"{made.verdict}. Report in {out}")


def as_json(made: Report, out: Path) -> dict[str, Any]:
    """The words and the numbers at the top of a report."""
    tiles = {tile.label: {"value": tile.value, "note": tile.note, "level": tile.level} for tile in made.tiles}
    return {
        "report": str(out),
        "level": made.level,
        "verdict": made.verdict,
        "summary": list(made.summary),
        "advice": list(made.advice),
        "tiles": tiles,
        "redacted": made.redacted,
    }


def _check_options(
    source: Path, model: str | None, requests: Path | None, limit: int | None, material: Mapping[str, Any]
) -> None:
    if not source.exists():
        recover(source)
    if not source.exists():
        raise ValueError(f"source: {source} does not exist; a history's file or an adapter's folder is accepted")
    if limit is not None and requests is None:
        raise ValueError(f"limit: {limit} needs --requests")
    if requests is not None and not source.is_dir():
        raise ValueError("requests: a history knows its own; --requests goes with an adapter's folder")
    given = [name for name, value in {"requests": requests, **material}.items() if value]
    if given and model is None:
        raise ValueError(f"{given[0]}: needs --model, the unedited base")


def _numbered(path: Path | None, limit: int | None, on_bad_record: str) -> dict[int, EditRequest]:
    return {} if path is None else dict(enumerate(requested(path, limit, on_bad_record).requests, start=1))


def _standing(history: History) -> dict[int, EditRequest]:
    return {record.id: record.request for record in history.edits(standing=True) if record.request is not None}
