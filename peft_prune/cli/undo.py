"""`peft-prune undo`: take edits out of an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..outputs import require_outputs
from .edit import say_fallen, standing_by_state
from .options import Author, BaseModel, Dtype, GgufFile, HistoryFile, JsonOutput, Overwrite
from .placement import Placement, placed
from .places import in_gguf
from .plain import close_with, shows_progress

if TYPE_CHECKING:
    from ..session import History


@placed
def undo(
    history: HistoryFile,
    model: BaseModel,
    out: Annotated[Path, typer.Option(help="Folder for the adapter without them.")],
    edits: Annotated[Optional[list[int]], typer.Argument(help="Numbers of the edits.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every edit that stands, in place of numbers.")] = False,
    since: Annotated[
        Optional[str],
        typer.Option(
            help="In place of numbers: every edit that stands from this one on, or from this day on, as in 17 or "
            "2026-03-01. A time may follow the day, as in 2026-03-01T15:00; it is UTC unless it says otherwise."
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="For the log.")] = "asked for",
    author: Author = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Take edits out of an adapter, whenever they were made, and save what is left."""
    from ..session import History
    from .models import print_json, resumed

    _require_one_way(edits or (), all_, since)

    model = in_gguf(model, gguf_file)
    require_outputs(folders={"out": out}, inputs={"history": history, "model": model}, overwrite=overwrite)
    with History.read(history) as log:
        chosen = sorted(set(edits)) if edits else _chosen(log, since)
    with resumed(history, model, dtype, placement, author) as session:
        session.shows_bars = shows_progress(json_output)
        session.undo(chosen, reason)
        session.save(out, overwrite=overwrite)
        standing, results = session.history.standing, session.results
    if json_output:
        print_json({"undone": chosen, "reason": reason, "edits": standing_by_state(results), "adapter": str(out)})
        return
    close_with(f"{len(chosen)} undone, {standing} stand; adapter in {out}")
    say_fallen(results)


def _require_one_way(edits: Sequence[int], all_: bool, since: str | None) -> None:
    given = [way for way, used in (("numbers", edits), ("--all", all_), ("--since", since is not None)) if used]
    if len(given) != 1:
        what = " and ".join(given) if given else "nothing"
        raise ValueError(f"edits: {what} is given; say which by numbers, or by --all, or by --since")
    if since is not None and not since.isdecimal():
        _moment(since)  # what is wrong shows before a model is loaded


def _chosen(log: History, since: str | None) -> list[int]:
    """Numbers of the edits that stand; from an edit or a moment on, where one is given."""
    standing = log.edits(standing=True)
    if since is None:
        found = [record.id for record in standing]
    elif since.isdecimal():
        found = [record.id for record in standing if record.id >= int(since)]
    else:
        first = _moment(since)
        made = {row["id"]: _moment(row["finished_at"]) for row in log.table("batches")}
        found = [record.id for record in standing if made[record.batch] >= first]
    if not found:
        raise ValueError(f"edits: none stands{'' if since is None else f' since {since}'}")
    return found


def _moment(text: str) -> datetime:
    """A day, which begins at midnight, or a time; UTC where it does not say otherwise."""
    try:
        try:
            day = date.fromisoformat(text)
            found = datetime(day.year, day.month, day.day)
        except ValueError:
            found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"since: {text!r} is neither the number of an edit nor a day such as 2026-03-01") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)
