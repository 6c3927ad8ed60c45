"""The report of a history: what was edited, what became of it, and how the model bears it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..monitoring import CONDITION_GROWTH
from ..session import Attribution, History
from ..spectral import parse_restraint, restraint_text
from ..tuner import PruneEditConfig
from .courses import bars_chart, course_chart, days_chart, relations_chart, spectrum_chart
from .document import Block, Cell, Report, Row, Section, Table, Tile
from .edits import edits_table
from .limits import limits_of
from .log import EditLog
from .measured import evaluation_table, layers_table
from .now import Now
from .redaction import OpenRedactor, Redactor
from .sentences import LEADING, advice, summary, verdict
from .state import State
from .words import TERMS, figure_name, interval, moment, number, percent

_DIRECTIONS = (
    "All edits of a layer add up to one matrix ΔW. What it does most strongly are its largest singular directions; the "
    "restraint shrinks those above σmax(W₀)."
)


def history_report(
    history: History,
    *,
    now: Now | None = None,
    max_growth: float | None = None,
    redact: bool = False,
    redact_key: str | None = None,
) -> Report:
    """The report of a history; it is only read.

    Args:
        history: Open for reading is enough.
        now: The model as it is, for verification today and figures that are up to date.
        max_growth: A limit of κ(W0 + ΔW) / κ(W0) to judge by, in place of that of the history's guards.
        redact: Replace subjects, targets and answers by codes.
        redact_key: A key of one's own, so that codes of several reports can be compared.

    Raises:
        HistoryError: The history is damaged.
        ValueError: ``max_growth`` is not above 1.
    """
    log = EditLog.of(history)
    state = State(history, log, now, limits_of(log.meta, max_growth))
    redactor = Redactor(redact_key, _names(log, now)) if redact else OpenRedactor()
    return Report(
        title="Edits of a language model",
        subtitle=f"{Path(log.meta['model']).name}, edited with {log.meta['editor']['name']}",
        level=state.level,
        verdict=verdict(state),
        summary=summary(state),
        advice=advice(state),
        tiles=_tiles(state),
        sections=_sections(state, redactor),
        facts=_facts(state),
        terms=TERMS,
        redacted=redact,
    )


def _names(log: EditLog, now: Now | None) -> list[str]:
    """Everything that a redacted report must not say."""
    found = [one.answer for one in now.verification.values()] if now is not None else []
    for record in log.records:
        if record.request is not None:
            found += [record.request.subject, record.request.target_new, record.request.target_true or ""]
        found += [record.answer_before or "", record.answer_after or ""]
    return found


def _tiles(state: State) -> list[Tile]:
    log = state.log
    tiles = [Tile("edits asked for", f"{len(log.records):,}")]
    if state.took.n:
        tiles.append(Tile("took", percent(state.took.value or 0.0), f"n = {state.took.n}, {interval(state.took)}"))
    tiles.append(Tile("stand today", f"{state.standing:,}", f"{log.states()['undone']} undone"))
    by_figure = {one.limit.figure: one for one in state.watched}
    if state.worst is not None:
        own = by_figure.pop(CONDITION_GROWTH, None)
        note = "no limit set" if own is None else f"limit {number(own.limit.value)}"
        tiles.append(
            Tile("growth of κ", f"{number(state.growth[state.worst])} ×", note, None if own is None else own.level)
        )
    for figure, one in by_figure.items():
        note = f"base {number(one.limit.base)}, limit {number(one.limit.value)}"
        tiles.append(Tile(figure_name(figure), number(one.value), note, one.level))
    tiles.append(Tile("alerts", f"{len(log.alerts):,}", level="near" if log.alerts else None))
    return tiles


def _sections(state: State, redactor: Redactor) -> list[Section]:
    log, found = state.log, []
    if log.records:
        charts: list[Block] = [days_chart(log.by_day())]
        relations = {redactor.free(name): counts for name, counts in log.by_relation().items()}
        charts += [relations_chart(relations)] if relations else []
        found.append(Section("activity", "What was edited", charts))
    found.append(Section("health", "How the model bears it", _health(state)))
    if state.attribution:
        found.append(Section("directions", "Which edits weigh most", _directions(state, redactor), _DIRECTIONS))
    found.append(Section("alerts", "Alerts and changes", [_alerts(log), _changes(log, redactor)]))
    found.append(Section("edits", "All edits", [edits_table(log, state.now, redactor)]))
    return found


def _health(state: State) -> list[Block]:
    blocks: list[Block] = []
    log, now = state.log, state.now
    if log.growth:
        courses = {name: (course.edits, course.values) for name, course in log.growth.items()}
        limit = state.limit_of(CONDITION_GROWTH)
        title = "Growth of the condition number"
        blocks.append(course_chart("growth", title, courses, ylabel="κ(W₀ + ΔW) / κ(W₀)", limit=limit, base=1.0))
    for place, (name, course) in enumerate(log.measurements.items()):
        limit, spoken = state.limit_of(name), figure_name(name)
        base = None if limit is None else limit.base
        own = {spoken: (course.edits, course.values)}
        title = spoken[:1].upper() + spoken[1:]
        blocks.append(course_chart(f"ability-{place}", title, own, ylabel=spoken, limit=limit, base=base))
    if now is not None and now.evaluation is not None:
        blocks.append(evaluation_table(now.evaluation))
    if now is not None:
        blocks.append(layers_table({name: vars(one) for name, one in now.figures.items()}, "now"))
    else:
        blocks.append(layers_table(log.figures, f"after edit {log.figures_edits}"))
    return blocks


def _directions(state: State, redactor: Redactor) -> list[Block]:
    name, found = next(iter(state.attribution.items()))
    sigma, word = state.sigma_max(name), _restraint(state.log.meta, name)
    curves = {"sum of the edits": found.singular_values.tolist()}
    if sigma is not None and word != "none":
        curves[f"restrained, {word}"] = parse_restraint(word)(found.singular_values, sigma).tolist()
    subjects = {r.id: redactor.code(r.request.subject) for r in state.log.records if r.request is not None}
    blocks: list[Block] = [spectrum_chart("singular", f"Largest directions of ΔW in {name}", curves, sigma)]
    leading = {f"{edit} {subjects.get(edit, '')}".strip(): 100 * share for edit, share in found.leading(10)}
    said = f"The edits that carry most of the largest direction of {name}: {', '.join(leading)}."
    title = "Edits that carry the largest direction"
    blocks.append(bars_chart("leading", title, leading, xlabel="share of it, per cent", described=said))
    return blocks + [_carriers(module, own, subjects) for module, own in state.attribution.items()]


def _carriers(module: str, found: Attribution, subjects: Mapping[int, str]) -> Table:
    rows: list[Row] = []
    for place, value in enumerate(found.singular_values.tolist()):
        shares = found.shares[:, place]
        order = shares.abs().argsort(descending=True)[:LEADING].tolist()
        carried = [f"{found.edits[i]} {subjects.get(found.edits[i], '')} ({percent(float(shares[i]))})" for i in order]
        rows.append([Cell(str(place + 1), place), Cell(number(value, 4), value), ", ".join(carried)])
    return Table(
        f"carriers-{module.replace('.', '-')}",
        f"Edits that carry them, {module}",
        ["direction", "singular value", "edits that carry the most of it"],
        rows,
        numeric=(0, 1),
        note="A negative share works against the direction.",
        wide=True,
    )


def _alerts(log: EditLog) -> Table:
    rows: list[Row] = [
        [Cell(moment(one["at"]), one["at"].timestamp()), str(one["batch"]), one["action"], one["message"]]
        for one in reversed(log.alerts)
    ]
    columns = ["time (UTC)", "batch", "action", "message"]
    return Table("alert-list", "Alerts", columns, rows, numeric=(1,), empty="No guard has raised an alert.", wide=True)


def _changes(log: EditLog, redactor: Redactor) -> Table:
    rows: list[Row] = [
        [Cell(moment(when), when.timestamp()), redactor.free(what)] for when, what in reversed(log.changes)
    ]
    columns = ["time (UTC)", "what was done"]
    return Table(
        "changes", "Changes made later", columns, rows, empty="Nothing was undone or restrained anew.", wide=True
    )


def _restraint(meta: Mapping[str, Any], module: str) -> str:
    stored = {name: value for name, value in meta["config"].items() if value is not None}
    return restraint_text(PruneEditConfig(**stored).restraint_of(module))


def _facts(state: State) -> list[tuple[str, str]]:
    meta, runs = state.log.meta, state.log.runs
    config = meta["config"]
    alpha = f", α = {config['alpha']:g}" if config["restraint"] == "log" else ""
    facts = [
        ("history", str(state.history.path or "in memory")),
        ("model", str(meta["model"])),
        ("editor", str(meta["editor"]["name"])),
        ("restraint", f"{config['restraint']}{alpha}, {_schedule(config)}"),
    ]
    if runs:
        last = runs[-1]
        when = str(last["opened_at"])[:16].replace("T", " ")
        facts.append(("sessions", f"{len(runs)}, the last by {last['author']} at {when} UTC"))
        versions = json.loads(str(last["versions"]))
        facts.append(("versions", ", ".join(f"{name} {own}" for name, own in versions.items() if own)))
    return facts


def _schedule(config: Mapping[str, Any]) -> str:
    kind = config["restrain_on"]
    if kind in ("every", "compounding"):
        return f"{kind} {config['restrain_every']} edits"
    return f"at growth {config['max_condition_growth']:g}" if kind == "threshold" else "before merging or saving"
