"""`peft-prune resume`: go on with a history, on another day and in another process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..folders import whole_folder
from ..outputs import Given, require_outputs
from ..requests import EditRequest, LoadedRequests
from .edit import going_on, moments_beside, report_edits, saving, say_fallen
from .options import Ask, Author, Dtype, GgufFile, JsonOutput, Overwrite, ServeDtype, SolveDevice
from .placement import Placement, placed
from .places import in_gguf
from .plain import close_with, shows_progress
from .progress import progress_bar
from .requested import OnBadRecord, requested
from .watching import MaxDrop, MaxGrowth, MaxNorm, MaxOutputChange, OnLimit, Watch, WatchEvery, WatchFacts, WatchText


@placed
def resume(
    history: Annotated[Path, typer.Argument(help="SQLite file of an earlier session.", metavar="HISTORY")],
    model: Annotated[str, typer.Option(help="The unedited base model: a folder or a Hub name.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter with all edits that stand.")],
    requests: Annotated[
        Optional[Path],
        typer.Option(
            help="Edit requests: a JSON, JSONL or CSV file, or hub:owner/name:split. Without it the adapter of the "
            "history is written as it stands."
        ),
    ] = None,
    skip: Annotated[
        int, typer.Option(help="Leave out the first so many requests, such as those made before an interruption.")
    ] = 0,
    limit: Annotated[
        Optional[int], typer.Option(help="Use the first so many requests only, those that are skipped among them.")
    ] = None,
    on_bad_record: OnBadRecord = "fail",
    batch_size: Annotated[int, typer.Option(help="Requests that are computed together.")] = 10,
    stats: Annotated[
        Optional[Path],
        typer.Option(help="The second moment that its edits were made with; the one kept beside it if not given."),
    ] = None,
    consolidate: Annotated[
        Optional[str],
        typer.Option(help="As of `peft-prune edit`, for this run; what the history's adapter was given if not given."),
    ] = None,
    max_growth: MaxGrowth = None,
    max_norm: MaxNorm = None,
    max_output_change: MaxOutputChange = None,
    watch_facts: WatchFacts = None,
    watch_text: WatchText = None,
    watch_every: WatchEvery = 10,
    max_drop: MaxDrop = None,
    on_limit: OnLimit = "warn",
    gguf_file: GgufFile = None,
    dtype: Dtype = "float32",
    ask: Ask = None,
    serve_dtype: ServeDtype = "auto",
    solve_device: SolveDevice = None,
    author: Author = None,
    overwrite: Overwrite = False,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Edit further facts with the editor and the restraint of a history, or write its adapter as it stands.

    No earlier edit is computed again.
    """
    from ..editors import Solving
    from ..session import EditSession, History
    from ..tuner.config import require_consolidation
    from .bars import EditProgress
    from .models import load_model, load_tokenizer
    from .models import serve_dtype as serve_dtype_of

    model = in_gguf(model, gguf_file)
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} must be at least 1")
    inputs: dict[str, Given] = {"history": history, "model": model, "requests": requests}
    inputs |= {"texts": watch_text, "facts": watch_facts, "second moment": [stats, moments_beside(history)]}
    require_outputs(folders={"out": out}, inputs=inputs, overwrite=overwrite)
    given, records = _remaining(requests, limit, skip, on_bad_record)
    if consolidate is not None:
        require_consolidation(consolidate)
    watch = Watch(max_growth, watch_facts, watch_text, watch_every, max_drop, on_limit, max_norm, max_output_change)
    with History.read(history) as log:
        facts = log.meta
        first, moments = log.last_edit + 1, facts["moments"]
        known = [record.request for record in log.edits(standing=True) if record.request is not None]
    if stats is None and moments_beside(history).is_file():
        stats = moments_beside(history)
    if records and stats is None and moments:
        raise ValueError(f"stats: the edits of {history} were made with a second moment; give its file by --stats")
    solving = Solving(solve_device)
    tokenizer = load_tokenizer(model)
    recorded = facts.get("serve_dtype") if serve_dtype == "auto" else None
    served = recorded or serve_dtype_of(model, serve_dtype)
    with whole_folder(out, overwrite=overwrite) as folder, progress_bar(quiet=json_output) as progress:
        base = load_model(model, dtype, placement)
        callbacks = [*watch.guards(base, tokenizer, [*known, *records]), EditProgress(progress, len(records))]
        options: dict[str, Any] = {"statistics": stats, "callbacks": callbacks, "ask": ask, "serve_dtype": served}
        options |= {"solving": solving, "author": author}
        with EditSession.resume(history, base, tokenizer, **options) as session:
            session.shows_bars = shows_progress(json_output)
            config = session.workspace.config
            config.consolidate = consolidate or config.consolidate  # type: ignore[assignment]
            if config.consolidate != "every":
                config.consolidate_window = None
            if records:
                with going_on(session, history, first - 1 - skip):
                    session.edit(records, batch_size=batch_size)
            with saving(history):
                session.save(folder)  # also where none of the new edits took: the others stand
            results, standing, consolidated = session.results, session.history.standing, session.consolidated
    earlier = results[: first - 1]
    report_edits(results[first - 1 :], out, json_output, given, first, skip, earlier, consolidated)
    if not json_output:
        close_with(f"{standing} edits stand")
        say_fallen(earlier)


def _remaining(
    requests: Path | None, limit: int | None, skip: int, on_bad_record: str
) -> tuple[LoadedRequests | None, list[EditRequest]]:
    """The file's requests, and those of them that are not done yet; none where none are given, or all are done."""
    if requests is None:
        for name, value in (("skip", skip), ("limit", limit)):
            if value:
                raise ValueError(f"{name}: {value} needs --requests")
        return None, []
    given = requested(requests, limit, on_bad_record)
    if not 0 <= skip <= len(given.requests):
        raise ValueError(f"skip: {skip} must be at least 0 and at most the {len(given.requests)} requests")
    return given, list(given.requests[skip:])
