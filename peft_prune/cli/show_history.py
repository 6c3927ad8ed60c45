"""`peft-prune history`: what became of edits."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .options import HistoryFile, JsonOutput
from .plain import plain, say

if TYPE_CHECKING:
    from ..session import EditRecord


def history(
    history: HistoryFile,
    status: Annotated[
        Optional[str],
        typer.Option(help="Show these alone: applied, weakened, lost, undone, failed, rejected or skipped."),
    ] = None,
    last: Annotated[Optional[int], typer.Option(help="Show the last so many edits.")] = None,
    json_output: JsonOutput = False,
) -> None:
    """List the edits of a history and what had become of them when last seen; also while a session writes it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ..session import STATES, History
    from .models import print_json

    if status is not None and status not in STATES:
        raise ValueError(f"status: {status!r} is not one of {', '.join(STATES)}")
    if last is not None and last < 1:
        raise ValueError(f"last: {last} must be at least 1")
    with History.read(history) as log:
        records = [record for record in log.edits() if status in (None, record.state)]
        records = records if last is None else records[-last:]
        meta = log.meta
        events = log.table("events") if json_output else log.events()
        standing = log.standing
    if json_output:
        edits = [_document(record) for record in records]
        print_json({"model": meta["model"], "editor": meta["editor"]["name"], "edits": edits, "events": events})
        return
    in_chat = any(record.chat is not None for record in records)
    title = f"{meta['model']}: {standing} edits stand ({meta['editor']['name']})"
    table = Table(title=plain(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits a terminal of 80 columns
    columns = ("edit", "subject", "target", "before", "last seen", "prob.", "status")
    for column in (*columns, "in chat") if in_chat else columns:
        table.add_column(column, overflow="fold", justify="right" if column == "prob." else "left")
    for record in records:
        request = record.request
        answer, probability, when = _last_seen(record)
        state = f"undone: {record.undone_reason}" if record.undone_at else f"{record.state}{when}"
        cells = (
            str(record.id),
            request.name if request else "",
            request.target_new if request else "",
            " ".join((record.answer_before or "").split()),
            " ".join((answer or "").split()),
            "" if probability is None else f"{probability:.2f}",
            state if record.reason is None or record.has_taken else f"{state}: {record.reason}",
        )
        table.add_row(*map(plain, (*cells, _in_chat(record)) if in_chat else cells))
    Console().print(table)
    for event in events:
        if event["kind"] == "alert":
            alert = event["data"]
            say(f"alert after batch {event['batch']}: {alert['source']}: {alert['message']} ({alert['action']})")


def _document(record: EditRecord) -> dict[str, Any]:
    """A record ready for JSON; what was said in chat only where it was asked so."""
    found = {**asdict(record), "status": record.state, "took": record.has_taken, "stands": record.stands}
    return found if record.chat is not None else {name: value for name, value in found.items() if name != "chat"}


def _in_chat(record: EditRecord) -> str:
    """The first sentence that was answered in chat, and whether it does not give the target."""
    from ..models.answers import first_sentence

    if record.chat is None:
        return ""
    return first_sentence(record.chat.answer) + ("" if record.chat.holds else " (not the target)")


def _last_seen(record: EditRecord) -> tuple[str | None, float | None, str]:
    """The answer and the probability at the last look, and when that was where it was later than the edit's batch."""
    seen = record.seen if record.stands else None
    if seen is None:
        return record.answer_after, record.probability_after, ""
    return seen.answer, seen.probability, "" if seen.batch == record.batch else f" (seen after batch {seen.batch})"
