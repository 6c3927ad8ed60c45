"""`peft-prune history`: what became of edits."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

from ..session import History
from .models import print_json
from .options import HistoryFile
from .plain import plain, say


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
    table = Table(title=plain(f"{meta['model']}: {standing} edits stand ({meta['editor']['name']})"))
    for column in ("edit", "subject", "target", "before", "after", "probability", "status"):
        table.add_column(column, overflow="fold")
    for record in records:
        request = record.request
        state = f"undone: {record.undone_reason}" if record.undone_at else record.status
        cells = (
            str(record.id),
            request.subject if request else "",
            request.target_new if request else "",
            " ".join((record.answer_before or "").split()),
            " ".join((record.answer_after or "").split()),
            "" if record.probability_after is None else f"{record.probability_after:.2f}",
            state if record.reason is None or record.undone_at else f"{state}: {record.reason}",
        )
        table.add_row(*map(plain, cells))
    Console().print(table)
    for event in events:
        if event["kind"] == "alert":
            alert = event["data"]
            say(f"alert after batch {event['batch']}: {alert['source']}: {alert['message']} ({alert['action']})")
