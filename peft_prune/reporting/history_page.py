"""The report of a history: what was edited, what became of it, and how the model bears it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..monitoring import CONDITION_GROWTH
from ..session import Attribution, EditRecord, History
from ..spectral import parse_restraint, restraint_text
from ..tuner import PruneEditConfig
from .courses import bars_chart, course_chart, days_chart, relations_chart, spectrum_chart
from .document import Block, Cell, Chart, Report, Row, Section, Table, Tile
from .edits import edits_table
from .limits import level_with, limits_of
from .log import EditLog
from .measured import evaluation_table, layers_table, measured_value
from .now import Now
from .redaction import OpenRedactor, Redactor
from .sentences import LEADING, advice, answers, summary, verdict
from .state import State, Watched
from .words import TERMS, edits, figure_name, like_these, moment, number, percent

SHOWN = 8
"""Layers whose course is drawn; the table has all."""

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
        redact: Replace what people named, and what models answered, by codes.
        redact_key: A key of one's own, so that codes of several reports can be compared.

    Raises:
        HistoryError: The history is damaged.
        ValueError: ``max_growth`` is not above 1.
    """
    redactor = Redactor(redact_key) if redact else OpenRedactor()
    with history.snapshot():
        log = EditLog.of(history, None if now is None else now.verification).shown_by(redactor)
        limits = [replace(one, figure=redactor.figure(one.figure)) for one in limits_of(log.meta, max_growth)]
        state = State(history, log, now, limits)
        return Report(
            title="Edits of a language model",
            subtitle=f"{redactor.place(Path(log.meta['model']).name)}, edited with {log.meta['editor']['name']}",
            level=state.level,
            verdict=verdict(state),
            summary=summary(state),
            advice=advice(state),
            tiles=_tiles(state),
            sections=_sections(state, redactor),
            facts=_facts(state, redactor),
            terms=TERMS,
            redacted=redact,
            answers=answers(state),
        )


def _tiles(state: State) -> list[Tile]:
    log = state.log
    tiles = [Tile("edits asked for", f"{len(log.records):,}")]
    if state.took.n:
        took = sum(record.took for record in log.tried)
        tiles.append(Tile("took", f"{took:,} of {state.took.n:,}", like_these(state.took)))
    undone = log.states()["undone"]
    held = f"{state.standing - len(state.fallen)} hold, " if state.standing else ""
    level = level_with("good", len(state.fallen), state.standing) if state.fallen else None
    fallen = f"{len(state.fallen):,} {'does' if len(state.fallen) == 1 else 'do'} not hold" if state.fallen else ""
    tiles.append(Tile("stand today", f"{state.standing:,}", f"{held}{undone} undone", level, fallen))
    closest: dict[str, Watched] = {}
    for one in state.watched:  # the one closest to being passed comes first
        closest.setdefault(one.limit.figure, one)
    if state.worst is not None:
        own = closest.pop(CONDITION_GROWTH, None)
        note = "no limit set" if own is None else f"limit {number(own.limit.value)}"
        value = f"{number(state.growth[state.worst])} ×"
        tiles.append(Tile("growth of κ", value, note, None if own is None else state.shown(own.level)))
    for figure, one in closest.items():
        note = f"base {number(one.limit.base)}, limit {number(one.limit.value)}"
        tiles.append(Tile(figure_name(figure), number(one.value), note, state.shown(one.level)))
    tiles.append(Tile("alerts", f"{len(log.alerts):,}"))
    return tiles


def _sections(state: State, redactor: Redactor) -> list[Section]:
    log, found = state.log, []
    if log.records:
        charts: list[Block] = [days_chart(log.by_day())]
        charts += _relations(log, redactor)
        found.append(Section("activity", "What was edited", charts))
    found.append(Section("health", "How the model bears it", _health(state, redactor)))
    if state.attribution:
        found.append(Section("directions", "Which edits weigh most", _directions(state, redactor), _DIRECTIONS))
    found.append(Section("alerts", "Alerts and changes", [_alerts(log, redactor), _changes(log, redactor)]))
    found.append(Section("edits", "All edits", [edits_table(log, state.now, redactor)]))
    return found


def _relations(log: EditLog, redactor: Redactor) -> list[Block]:
    members: dict[str, list[EditRecord]] = {}
    for name, records in log.by_relation().items():
        # two prompts that differ in case have one code
        members.setdefault(redactor.relation(name), []).extend(records)
    if not members:
        return []
    tried = {record.id for record in log.tried}
    held = {}
    for name, records in members.items():
        own = [record for record in records if record.id in tried]
        held[name] = f"{sum(record.took for record in own)} of {len(own)}" if own else "–"
    return [relations_chart({name: Counter(map(log.state, own)) for name, own in members.items()}, held)]


def _health(state: State, redactor: Redactor) -> list[Block]:
    blocks: list[Block] = []
    log, now = state.log, state.now
    if log.growth:
        blocks.append(_growth_chart(state))
    for place, (name, course) in enumerate(log.measurements.items()):
        limits, spoken = state.limits_of(name), figure_name(name)
        own = {spoken: (course.edits, course.values)}
        today = None if now is None else measured_value(now.evaluation, name)
        caption = "" if today is None else f"Now: {number(today)}."
        base = limits[0].base if limits else None
        title = spoken[:1].upper() + spoken[1:]
        blocks.append(
            course_chart(f"ability-{place}", title, own, ylabel=spoken, limits=limits, base=base, caption=caption)
        )
    if now is not None and now.evaluation is not None:
        blocks.append(evaluation_table(now.evaluation, redactor.ability))
    if now is not None:
        blocks.append(layers_table({name: vars(one) for name, one in now.figures.items()}, "now"))
    else:
        blocks.append(layers_table(log.figures, f"after edit {log.figures_edits}"))
    return blocks


def _growth_chart(state: State) -> Chart:
    growth = state.log.growth
    worst = sorted(growth, key=lambda name: -_sortable(growth[name].last))[:SHOWN]
    courses = {name: (growth[name].edits, growth[name].values) for name in growth if name in worst}
    caption = f"The {SHOWN} layers of {len(growth)} that have grown most." if len(growth) > SHOWN else ""
    if state.now is not None and state.worst is not None:
        caption = f"{caption} Now: {number(state.growth[state.worst])} in {state.worst}.".strip()
    return course_chart(
        "growth",
        "Growth of the condition number",
        courses,
        ylabel="κ(W₀ + ΔW) / κ(W₀)",
        limits=state.limits_of(CONDITION_GROWTH),
        base=1.0,
        caption=caption,
    )


def _sortable(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _directions(state: State, redactor: Redactor) -> list[Block]:
    name, found = next(iter(state.attribution.items()))
    sigma, word = state.sigma_max(name), _restraint(state.log.meta, name)
    curves = {"sum of the edits": found.singular_values.tolist()}
    restraint = parse_restraint(word)
    # what takes directions of W₀ out of ΔW is no function of the singular values that are drawn here
    if sigma is not None and word != "none" and not restraint.needs_weight:
        curves[f"under {word}"] = restraint(found.singular_values, sigma).tolist()
    labels = _labels(state, redactor)
    blocks: list[Block] = [spectrum_chart("singular", f"Largest directions of ΔW in {name}", curves, sigma)]
    leading = {labels[edit]: 100 * share for edit, share in found.leading(10)}
    said = f"The edits with the largest shares in the largest direction of {name}: {', '.join(leading)}."
    title = "Edits that carry the largest direction"
    blocks.append(bars_chart("leading", title, leading, xlabel="share of it, per cent", described=said))
    return blocks + [_carriers(module, own, labels) for module, own in state.attribution.items()]


def _labels(state: State, redactor: Redactor) -> dict[int, str]:
    """By leading edit, its number and subject; those that share their factors are named together."""
    subjects = {r.id: redactor.code(r.request.name) for r in state.log.records if r.request is not None}
    return {
        leader: f"{leader} {subjects.get(leader, '')}".strip() if len(members) == 1 else f"{edits(members)} together"
        for leader, members in state.members.items()
    }


def _carriers(module: str, found: Attribution, labels: Mapping[int, str]) -> Table:
    rows: list[Row] = []
    for place, value in enumerate(found.singular_values.tolist()):
        shares = found.shares[:, place]
        order = shares.abs().argsort(descending=True)[:LEADING].tolist()
        carried = tuple(f"{labels[found.edits[i]]} ({percent(float(shares[i]))})" for i in order)
        rows.append(
            [Cell(str(place + 1), place), Cell(number(value, 4), value), Cell(", ".join(carried), parts=carried)]
        )
    return Table(
        f"carriers-{re.sub(r'[^A-Za-z0-9_-]', '-', module)}",
        f"Edits that carry them, {module}",
        ["direction", "singular value", "edits that carry the most of it"],
        rows,
        numeric=(0, 1),
        note="A negative share works against the direction.",
        wide=True,
    )


def _alerts(log: EditLog, redactor: Redactor) -> Table:
    rows: list[Row] = [
        [
            Cell(moment(one["at"]), one["at"].timestamp()),
            str(one["batch"]),
            one["action"],
            redactor.alert(one["source"], one["message"]),
        ]
        for one in reversed(log.alerts)
    ]
    columns = ["time (UTC)", "batch", "action", "message"]
    empty = "No guard has raised an alert."
    return Table("alert-list", "Alerts", columns, rows, numeric=(1,), empty=empty, wide=True)


def _changes(log: EditLog, redactor: Redactor) -> Table:
    rows: list[Row] = []
    for one in reversed(log.changes):
        why = f": {redactor.reason(one.reason)}" if one.reason else ""
        rows.append([Cell(moment(one.at), one.at.timestamp()), f"{one.what}{why}"])
    columns = ["time (UTC)", "what was done"]
    empty = "Nothing was undone or restrained anew."
    return Table("changes", "Changes beside the batches", columns, rows, empty=empty, wide=True)


def _restraint(meta: Mapping[str, Any], module: str) -> str:
    stored = {name: value for name, value in meta["config"].items() if value is not None}
    return restraint_text(PruneEditConfig(**stored).restraint_of(module))


def _facts(state: State, redactor: Redactor) -> list[tuple[str, str]]:
    meta, runs = state.log.meta, state.log.runs
    config = meta["config"]
    word = f"log:{config['alpha']:g}" if config["restraint"] == "log" else str(config["restraint"])
    patterns = [f"{text} for {pattern}" for pattern, text in (config.get("restraint_pattern") or {}).items()]
    facts = [
        ("history", redactor.place(str(state.history.path or "in memory"))),
        ("model", redactor.place(str(meta["model"]))),
        ("editor", str(meta["editor"]["name"])),
        ("restraint", f"{', '.join([*patterns, f'{word} for all others' if patterns else word])}; {_schedule(config)}"),
    ]
    if runs:
        last = runs[-1]
        when = str(last["opened_at"])[:16].replace("T", " ")
        facts.append(("sessions", f"{len(runs)}, the last by {last['author']} at {when} UTC"))
        versions = last["versions"]
        facts.append(("versions", ", ".join(f"{name} {own}" for name, own in versions.items() if own)))
    return facts


def _schedule(config: Mapping[str, Any]) -> str:
    kind = config["restrain_on"]
    if kind in ("every", "compounding", "compensated"):
        return f"{kind} {config['restrain_every']} edits"
    return f"at growth {config['max_condition_growth']:g}" if kind == "threshold" else "before merging or saving"
