"""`peft-prune edit`: edit a model in sequence and save the adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..errors import EditFailedError
from ..folders import whole_folder
from ..outputs import Given, require_outputs
from ..processes import is_main
from ..requests import LoadedRequests
from .moments import MomentsSource, Stats, StatsText, StatsTokens
from .options import (
    DEFAULT_EDITOR,
    Ask,
    Author,
    Dtype,
    EditorName,
    GgufFile,
    JsonOutput,
    Overwrite,
    ServeDtype,
    Settings,
    SolveDevice,
)
from .placement import Placement, placed
from .places import in_gguf
from .plain import close_with, say, shows_progress
from .progress import progress_bar
from .requested import OnBadRecord, bad_records, requested
from .watching import MaxDrop, MaxGrowth, MaxNorm, MaxOutputChange, OnLimit, Watch, WatchEvery, WatchFacts, WatchText

if TYPE_CHECKING:
    from ..editors import SecondMoments
    from ..session import EditResult, EditSession


@placed
def edit(
    model: Annotated[str, typer.Option(help="Model to edit: a folder or a Hub name.")],
    requests: Annotated[Path, typer.Option(help="Edit requests: a JSON, JSONL or CSV file, or hub:owner/name:split.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    editor: EditorName = DEFAULT_EDITOR,
    layers: Annotated[
        Optional[str], typer.Option(help="Layers to edit, such as 2 or 13,14,15; found by a rule if not given.")
    ] = None,
    history: Annotated[
        Optional[Path],
        typer.Option(
            help="New SQLite file for the log of all edits; without it the adapter alone is kept. peft-prune resume "
            "goes on with it."
        ),
    ] = None,
    limit: Annotated[Optional[int], typer.Option(help="Use the first so many requests only.")] = None,
    on_bad_record: OnBadRecord = "fail",
    batch_size: Annotated[int, typer.Option(help="Requests that are computed together.")] = 10,
    stats_text: StatsText = None,
    stats: Stats = None,
    stats_tokens: StatsTokens = None,
    restraint: Annotated[
        str,
        typer.Option(
            help="log, linear, clip, scale, sphere, revive or none; a value may stand behind a colon, as in sphere:0.5."
        ),
    ] = "log",
    alpha: Annotated[float, typer.Option(help="Base of the logarithm of 'log', above 1.")] = 1.2,
    restrain_on: Annotated[
        str, typer.Option(help="When the restraint acts: every, merge, threshold, compounding or compensated.")
    ] = "every",
    restrain_every: Annotated[int, typer.Option(help="Edits between two restraints.")] = 10,
    max_condition_growth: Annotated[
        float,
        typer.Option(
            help="With --restrain-on threshold: growth of the condition number above which the restraint acts."
        ),
    ] = 2.0,
    max_update_norm: Annotated[
        Optional[float],
        typer.Option(
            help="With --restrain-on threshold: norm of the update, over the base weight's, above which the restraint "
            "acts; --max-norm is a limit to be told of, or that rolls back."
        ),
    ] = None,
    max_output_perturbation: Annotated[
        Optional[float],
        typer.Option(
            help="With --restrain-on threshold: mean squared change of a layer's output, over the mean squared output, "
            "above which the restraint acts. --max-output-change is a limit instead."
        ),
    ] = None,
    max_rank: Annotated[Optional[int], typer.Option(help="Upper limit of a layer's rank.")] = None,
    consolidate: Annotated[
        str,
        typer.Option(
            help="When all edits are trained together within the restraint's singular values: auto (before saving, "
            "from 20 edits on), save, every, or demand (peft-prune consolidate)."
        ),
    ] = "auto",
    consolidate_every: Annotated[int, typer.Option(help="Edits between two, with --consolidate every.")] = 100,
    consolidate_window: Annotated[
        Optional[int],
        typer.Option(
            help="With --consolidate every: of the edits before, how many are read again beside the new ones, so that "
            "thousands cost no more an edit than hundreds; all if not given."
        ),
    ] = None,
    protect: Annotated[
        Optional[Path], typer.Option(help="Facts that must not be lost: objects with prompt and object.")
    ] = None,
    on_protected: Annotated[
        str, typer.Option(help="When a batch changes one of them: warn, restrain, rollback or stop.")
    ] = "warn",
    set_: Settings = None,
    second_try: Annotated[
        bool, typer.Option(help="Try an edit that did not take once more with a stronger setting.")
    ] = True,
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
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what was chosen for this model and why, before editing.")
    ] = False,
    overwrite: Overwrite = False,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Edit facts one after another, verify each, and save the adapter that holds them."""
    from peft import get_peft_model

    from ..editors import Solving, get_editor
    from ..editors.asking import default_ask
    from ..session import EditSession
    from ..tuner import PruneEditConfig
    from . import explain as explanation
    from .bars import EditProgress
    from .models import load_model, load_tokenizer
    from .models import serve_dtype as serve_dtype_of

    model = in_gguf(model, gguf_file)
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} must be at least 1")
    if history is not None and history.exists() and is_main():
        raise ValueError(f"history: {history} exists; go on with it by peft-prune resume, or give another file")
    inputs: dict[str, Given] = {"model": model, "requests": requests, "second moment": stats, "facts": watch_facts}
    inputs["protected facts"] = protect
    inputs["texts"] = [stats_text, watch_text]
    beside = None if history is None else moments_beside(history)
    written = {"history": history, "second moment beside the history": beside}
    require_outputs(folders={"out": out}, files=written, inputs=inputs, overwrite=overwrite)
    watch = Watch(max_growth, watch_facts, watch_text, watch_every, max_drop, on_limit, max_norm, max_output_change)
    given = requested(requests, limit, on_bad_record)
    records = given.requests
    config = PruneEditConfig(
        restraint=restraint,
        alpha=alpha,
        restrain_on=restrain_on,  # type: ignore[arg-type]
        restrain_every=restrain_every,
        max_condition_growth=max_condition_growth,
        max_update_norm=max_update_norm,
        max_output_perturbation=max_output_perturbation,
        max_rank=max_rank,
        consolidate=consolidate,  # type: ignore[arg-type]
        consolidate_every=consolidate_every,
        consolidate_window=consolidate_window,
        task_type="CAUSAL_LM",
        base_model_name_or_path=model,
    )
    settings = hyperparameters(layers, set_ or [])
    if not second_try:
        settings["second_try"] = False  # kept with the editor, so that resuming tries once as well
    get_editor(editor, **settings)  # what is wrong with them shows before a model is loaded
    solving = Solving(solve_device)
    source = MomentsSource(stats, stats_text, stats_tokens)
    tokenizer = load_tokenizer(model)
    asked = default_ask(tokenizer, ask)
    served = serve_dtype_of(model, serve_dtype)
    with whole_folder(out, overwrite=overwrite) as folder:
        base = load_model(model, dtype, placement)
        method = get_editor(editor, model=base, **settings)
        config.layers_to_transform = list(method.admitted(base))
        config.experts = method.experts or config.experts  # type: ignore[assignment]
        if explain:
            explanation.explain(
                *(method, base, config),
                requests=len(records),
                batch_size=batch_size,
                moments=source.words(method.needs_moments),
                ask=asked,
                given_layers="layers" in settings,
                serve_dtype=served,
            )
        needed = method.needs_moments or stats or stats_text or max_output_change or max_output_perturbation
        modules = method.modules(base)
        statistics = source.moments(base, tokenizer, modules, records, json_output) if needed else None
        options: dict[str, Any] = {"statistics": statistics, "history": history, "ask": ask, "serve_dtype": served}
        options |= {"solving": solving, "author": author}
        if config.consolidates(len(records)):
            # what a window does not reach would have everything consolidated anew once it is rolled out
            options["on_failure"] = "consolidate" if consolidate_window is None else "skip"
            options["search_ask"] = "plain" if asked == "both" else None
        options |= {} if protect is None else {"protect": protect, "on_protected": on_protected}
        options["monitor"] = history is not None or watch.watches_layers
        guards = watch.guards(base, tokenizer, records)
        edited = get_peft_model(base, config).eval()
        with progress_bar(quiet=json_output) as progress:
            options["callbacks"] = [*guards, EditProgress(progress, len(records))]
            kept = statistics if stats is None and history is not None else None
            with (
                _beside(kept, history),
                EditSession(edited, tokenizer, method, **options) as session,
            ):
                session.shows_bars = shows_progress(json_output)
                with going_on(session, history):
                    outcomes = session.edit(records, batch_size=batch_size)
                if not any(outcome.stands for outcome in outcomes):
                    require_one(outcomes)
                with saving(history):
                    session.save(folder)
                together = session.consolidated
                outcomes = session.results  # what saving restrained may have weakened
                require_one(outcomes)
    report_edits(outcomes, out, json_output, given, consolidated=together)


@contextmanager
def going_on(session: EditSession, history: Path | None, before: int = 0) -> Iterator[None]:
    """Where the block is interrupted, say how to go on.

    Args:
        session: The session.
        history: File of its history, if it has one.
        before: Edits in the history that are not of this file of requests.
    """
    try:
        yield
    except KeyboardInterrupt:
        if history is not None:
            done = session.history.last_edit - before
            typer.echo(
                f"\n{done} of the requests are done and in {history}; go on with the same ones by "
                f"peft-prune resume {history} --skip {done}",
                err=True,
            )
        raise


@contextmanager
def saving(history: Path | None) -> Iterator[None]:
    """Where a consolidation before saving is interrupted, say how the edits are had without it."""
    try:
        yield
    except KeyboardInterrupt:
        if history is not None:
            typer.echo(
                f"\nAll edits are in {history}; peft-prune resume {history} --consolidate demand writes their adapter "
                "without consolidating it",
                err=True,
            )
        raise


@contextmanager
def _beside(statistics: SecondMoments | None, history: Path | None) -> Iterator[None]:
    """Keep second moments beside a history, before it is there: without them it could not be gone on with."""
    if statistics is None or history is None or not is_main():
        yield
        return
    statistics.save(moments_beside(history))
    try:
        yield
    except BaseException:
        if not history.exists():
            moments_beside(history).unlink(missing_ok=True)
        raise


def moments_beside(history: Path) -> Path:
    """Where the second moments of a history's session are kept, so that it can be gone on with."""
    return history.with_name(f"{history.name}.moments.safetensors")


def require_one(outcomes: Sequence[EditResult]) -> None:
    """Raise EditFailedError where no edit took."""
    if outcomes and not any(outcome.took for outcome in outcomes):
        raise EditFailedError(f"none of {len(outcomes)} edits took; the first: {outcomes[0].reason}")


_WORDS = {"True": True, "False": False, "None": None}
"""Values as the docs of the editors write them, which JSON does not know."""


def hyperparameters(layers: str | None, settings: Sequence[str]) -> dict[str, Any]:
    """Values of the editor's dataclass from text, read as JSON or a number, else as a word."""
    found: dict[str, Any] = {}
    if layers is not None:
        try:
            found["layers"] = tuple(int(layer) for layer in layers.split(","))
        except ValueError:
            raise ValueError(f"layers: {layers!r} must be numbers with commas between them") from None
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or not name.strip():
            raise ValueError(f"set: {setting!r} must have the form name=value")
        if name.strip() in found:
            raise ValueError(f"set: {name.strip()} is given twice; give it once")
        found[name.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"set: {text[:40]!r} is nested too deeply") from None
    except ValueError:
        # JSON knows no ".5"
        return float(text) if re.fullmatch(r"[-+]?\.\d+", text) else text


def report_edits(
    outcomes: Sequence[EditResult],
    out: Path,
    json_output: bool,
    given: LoadedRequests | None,
    first: int = 1,
    skipped: int = 0,
    earlier: Sequence[EditResult] | None = None,
    consolidated: int = 0,
) -> None:
    """Print what became of the requests, the first of which has this number in the history.

    Args:
        outcomes: What became of each.
        out: Folder of the adapter.
        json_output: Print one JSON document.
        given: The file's requests, of which the ``skipped`` first ones were left out; None where there is no file.
        first: Number of the first edit in the history.
        skipped: See ``given``.
        earlier: The edits that the history held before, where it is gone on with.
        consolidated: How many edits were trained together before saving.
    """
    from ..models.answers import first_sentence
    from ..session.records import LOST, WEAKENED
    from .models import print_json

    took, held = sum(outcome.took for outcome in outcomes), sum(outcome.applied for outcome in outcomes)
    chat = [outcome for outcome in outcomes if outcome.applied and outcome.chat is not None]
    silent = [outcome.id - first for outcome in chat if not outcome.holds_in_chat]
    if json_output:
        places = [(o.id - first, o.reason) for o in outcomes if not o.took]
        failed: list[dict[str, Any]] = [{"index": index, "reason": reason} for index, reason in places]
        if given is not None and given.skips:
            failed = [{**one, "record": given.records[one["index"] + skipped]} for one in failed]
        fallen = {status: [o.id - first for o in outcomes if o.status == status] for status in (WEAKENED, LOST)}
        if chat:
            fallen["not_in_chat"] = silent
        bad = {} if given is None else bad_records(given)
        counts: dict[str, Any] = {"requested": len(outcomes), "applied": took, "failed": failed}
        counts["consolidated"] = consolidated
        before = {} if earlier is None else {"earlier": standing_by_state(earlier)}
        print_json({**counts, **fallen, **bad, **before, "adapter": str(out)})
        return
    if not outcomes:
        close_with(f"No new edits; adapter in {out}")
        return
    now = "" if held == took else f", {held} of them hold now"
    in_chat = f", {len(chat) - len(silent)} in chat as well" if chat else ""
    tell = close_with if held == len(outcomes) else say  # what did not take is said also where little is
    trained = ", consolidated" if consolidated else ""
    tell(f"{took} of {len(outcomes)} edits took{now}{in_chat}{trained}; adapter in {out}")
    for outcome in outcomes:
        if not outcome.applied:
            say(f"  request {outcome.id - first}: {outcome.reason}")
        elif outcome.status == WEAKENED:
            say(f"  request {outcome.id - first}: weakened: less than half of the probability with which it took")
        if outcome.applied and outcome.holds_in_chat is False and outcome.chat is not None:
            said = first_sentence(outcome.chat.answer)
            say(f"  request {outcome.id - first}: in chat the model answers {said!r}")


def standing_by_state(results: Sequence[EditResult]) -> dict[str, Any]:
    """How many edits stand, and the numbers of those that hold less than when they took, or no longer."""
    from ..session.records import LOST, WEAKENED

    fallen = {state: [one.id for one in results if one.stands and one.status == state] for state in (WEAKENED, LOST)}
    return {"standing": sum(one.stands for one in results), **fallen}


def say_fallen(results: Sequence[EditResult]) -> None:
    """Print which edits that stand hold less than when they took, or no longer; nothing where all hold."""
    from ..reporting.words import edits
    from ..session.records import LOST, WEAKENED

    found = standing_by_state(results)
    for state in (WEAKENED, LOST):
        if found[state]:
            say(f"  {edits(found[state])} {'is' if len(found[state]) == 1 else 'are'} {state}")
