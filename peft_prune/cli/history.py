"""`peft-prune history`, `undo` and `tune`: what became of edits, and what is done with them later."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from ..evaluation import exclude_subjects, load_facts, recalled
from ..session import EditSession, History, calibrate_strengths, tune_restraint
from .models import load_model, load_tokenizer, print_json, require_room

HistoryFile = Annotated[Path, typer.Argument(help="SQLite file of a session.", metavar="HISTORY")]
BaseModel = Annotated[str, typer.Option(help="The unedited base model: a folder or a Hub name.")]
Dtype = Annotated[str, typer.Option(help="Dtype to load the model in; 'auto' keeps its own.")]


def history(
    history: HistoryFile,
    status: Annotated[
        Optional[str], typer.Option(help="Show these alone: applied, failed, rejected, skipped or undone.")
    ] = None,
    last: Annotated[Optional[int], typer.Option(help="Show the last so many edits.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the edits of a history and what became of them; also while a session writes it."""
    known = ("applied", "failed", "rejected", "skipped", "undone")
    if status is not None and status not in known:
        raise ValueError(f"status: {status!r} is not one of {', '.join(known)}")
    if last is not None and last < 1:
        raise ValueError(f"last: {last} must be at least 1")
    with History.read(history) as log:
        records = [r for r in log.edits() if status is None or status == ("undone" if r.undone_at else r.status)]
        records = records if last is None else records[-last:]
        meta = log.meta
        events = log.table("events") if json_output else log.events()
        standing = log.standing
    if json_output:
        edits = [{**asdict(record), "stands": record.stands} for record in records]
        print_json({"model": meta["model"], "editor": meta["editor"]["name"], "edits": edits, "events": events})
        return
    table = Table(title=f"{meta['model']}: {standing} edits stand ({meta['editor']['name']})")
    for column in ("edit", "subject", "target", "before", "after", "probability", "status"):
        table.add_column(column, overflow="fold")
    for record in records:
        request = record.request
        state = f"undone: {record.undone_reason}" if record.undone_at else record.status
        table.add_row(
            str(record.id),
            request.subject if request else "",
            request.target_new if request else "",
            " ".join((record.answer_before or "").split()),
            " ".join((record.answer_after or "").split()),
            "" if record.probability_after is None else f"{record.probability_after:.2f}",
            state if record.reason is None or record.undone_at else f"{state}: {record.reason}",
        )
    Console().print(table)
    for event in events:
        if event["kind"] == "alert":
            alert = event["data"]
            typer.echo(f"alert after batch {event['batch']}: {alert['source']}: {alert['message']} ({alert['action']})")


def undo(
    history: HistoryFile,
    edits: Annotated[list[int], typer.Argument(help="Numbers of the edits.")],
    model: BaseModel,
    out: Annotated[Path, typer.Option(help="Folder for the adapter without them.")],
    reason: Annotated[str, typer.Option(help="For the log.")] = "asked for",
    dtype: Dtype = "float32",
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
) -> None:
    """Take edits out of an adapter, whenever they were made, and save what is left."""
    require_room(out, overwrite)
    with _session(history, model, dtype) as session:
        session.undo(edits, reason)
        session.save(out, overwrite=overwrite)
        standing = session.history.standing
    typer.echo(f"{len(edits)} undone, {standing} stand; adapter in {out}")


def tune(
    history: HistoryFile,
    model: BaseModel,
    facts: Annotated[Path, typer.Option(help="Facts that the model shall keep: objects with prompt and object.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter under the chosen restraint.")],
    margin: Annotated[
        Optional[float],
        typer.Option(help="First find the least strength of each edit at which its target keeps this probability."),
    ] = None,
    groups: Annotated[str, typer.Option(help="'all': one restraint for all layers; 'layer': one for each.")] = "all",
    plot: Annotated[Optional[Path], typer.Option(help="Image file for the trade-off.")] = None,
    dtype: Dtype = "float32",
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Sweep the strength of the restraint over the edits made, and take what loses nothing and gains most."""
    require_room(out, overwrite)
    known = load_facts(facts)
    with _session(history, model, dtype) as session:
        if margin is not None:
            calibrate_strengths(session, margin, progress=not json_output)
        requests = [record.request for record in session.history.edits(standing=True) if record.request is not None]
        kept = exclude_subjects(known, requests)
        tokenizer = session.tokenizer

        def probe(edited: Any) -> list[float]:
            return [float(one) for one in recalled(edited, tokenizer, kept)]

        found = tune_restraint(session, probe, groups=groups, progress=not json_output)
        if plot is not None:
            found.plot(plot)
        session.save(out, overwrite=overwrite)
    points = [{**asdict(point), "label": point.label, "is_safe": point.is_safe} for point in found.points]
    if json_output:
        recommended, reference = asdict(found.recommended), asdict(found.reference)
        print_json({"recommended": recommended, "reference": reference, "points": points, "adapter": str(out)})
        return
    table = Table(title="Trade-off: edits that hold, and facts that are kept")
    for column in ("restraint", "edits hold", "facts kept", "κ", ""):
        table.add_column(column, justify="left" if column in ("restraint", "") else "right")
    for point in found.front:
        mark = "recommended" if point == found.recommended else ""
        mark = ", ".join(filter(None, [mark, "configured" if point.restraints == found.reference.restraints else ""]))
        table.add_row(
            point.label, f"{point.success:.3f}", f"{point.retention:.3f}", f"{point.condition_number:.3g}", mark
        )
    Console().print(table)
    typer.echo(f"Took {found.recommended.label}; adapter in {out}")


def _session(path: Path, model: str, dtype: str) -> EditSession:
    return EditSession.resume(path, load_model(model, dtype), load_tokenizer(model), monitor=False)
