"""The table of all edits."""

from __future__ import annotations

from ..models.answers import first_sentence
from ..session import EditRecord, Look, Verification
from ..session.records import Chat
from ..session.verification import Said
from .document import Cell, Level, Row, Table
from .log import CAUSES, STATES, EditLog
from .now import Now
from .redaction import Redactor
from .words import moment

_LEVELS: dict[str, Level] = {
    "applied": "good",
    "weakened": "near",
    "lost": "passed",
    "failed": "passed",
    "rolled back": "near",
    "rejected": "near",
    "skipped": "near",
}


def edits_table(log: EditLog, now: Now | None, redactor: Redactor) -> Table:
    """Every edit with its answers before and after, and what became of it; the newest first."""
    columns = ["edit", "time (UTC)", "subject", "relation", "new target", "before", "after"]
    seen = now is None and any(record.seen is not None for record in log.records)
    columns += ["now"] if now is not None else ["last seen"] if seen else []
    chat = any(record.chat is not None for record in log.records)
    columns += ["in chat"] if chat else []
    columns += ["probability", "state", "why", "by"]
    rows = [_row(log, record, now, seen, chat, redactor) for record in reversed(log.records)]
    states = log.states()
    return Table(
        "edit-list",
        "",
        columns,
        rows,
        numeric=(0, columns.index("probability")),
        searchable=True,
        filters=[state for state in STATES if states[state]],
        filter_column=columns.index("state"),
        note="Before and after are the model's own free answers to the bare prompt, before and after the edit's own "
        "batch with its restraint; the probability is that of the new target, after it. Of an edit that failed, both "
        "are those of its last attempt, which was taken out again. The state is that of the last look at the edit.",
        empty="There are no edits yet.",
    )


def _row(log: EditLog, record: EditRecord, now: Now | None, seen: bool, chat: bool, redactor: Redactor) -> Row:
    request, when, state = record.request, log.finished[record.id], log.state(record)
    probability = record.probability_after
    cells: list[Cell | str] = [
        Cell(str(record.id), record.id),
        Cell(moment(when), when.timestamp()),
        "" if request is None else redactor.code(request.name),
        "" if request is None else redactor.relation(request.relation_id or request.prompt),
        "" if request is None else redactor.code(request.target_new),
        redactor.answer((record.answer_before or "").strip(), request),
        redactor.answer((record.answer_after or "").strip(), request),
    ]
    if now is not None:
        cells.append(_now(now.verification.get(record.id), record, redactor))
    elif seen:
        cells.append(_now(record.seen if record.stands else None, record, redactor))
    if chat:
        verified = None if now is None else now.verification.get(record.id)
        cells.append(_in_chat(record.chat if verified is None else verified.chat, record, redactor))
    cells += [
        Cell("–" if probability is None else f"{probability:.2f}", -1.0 if probability is None else probability),
        Cell(state, state, _LEVELS.get(state), mark=True),
        _why(record, state, redactor),
        log.authors[record.id],
    ]
    return cells


def _now(found: Verification | Look | None, record: EditRecord, redactor: Redactor) -> Cell | str:
    if found is None:
        return ""
    answer = redactor.answer(found.answer.strip(), record.request)
    return Cell(answer, None, "good") if found.holds else Cell(f"{answer} (lost)", None, "passed")


def _in_chat(said: Chat | Said | None, record: EditRecord, redactor: Redactor) -> Cell | str:
    if said is None:
        return ""
    answer = redactor.answer(first_sentence(said.answer), record.request)
    return Cell(answer, None, "good") if said.holds else Cell(f"{answer} (not the target)", None, "passed")


def _why(record: EditRecord, state: str, redactor: Redactor) -> str:
    said = [redactor.reason(record.reason or "")]
    if state == "lost" and not record.took:
        said.append("the restraint of its batch took it away")
    elif state in ("lost", "weakened") and record.seen is not None:
        said.append(f"seen after {CAUSES.get(record.seen.cause, record.seen.cause)}")
    if record.undone_at:
        when = record.undone_at[:16].replace("T", " ")
        said.append(f"{redactor.reason(record.undone_reason or '')} ({record.undone_by}, {when})")
    if record.stronger and record.status == "applied":
        said.append(f"second try with {record.stronger}")
    if record.strength != 1.0:
        said.append(f"strength {record.strength:.2f}")
    if record.status == "failed" and record.stands:
        said.append("took when all were trained together" if record.has_taken else "kept all the same")
    return "; ".join(part for part in said if part)
