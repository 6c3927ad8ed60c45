"""The report of an audit: what checkpoints that were edited elsewhere have become, against their base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..audit import Audit, CheckpointAudit, Extraction, MatrixChange
from ..monitoring import Limit
from . import audit_words as words
from .courses import bars_chart, course_chart, spectrum_chart
from .document import Block, Cell, Level, Report, Row, Section, Table, Tile
from .limits import limits_of
from .words import TERMS, Term, listed, number, percent

SHOWN = 8
"""Matrices that are drawn; the table has all."""

_TERMS = (
    Term("ΔW and W₀", "The difference of a matrix, after minus before, and the matrix before."),
    Term(
        "Rank above rounding",
        "Directions of ΔW that are larger than what rounding to the checkpoint's number format alone would make. Edits "
        "have few, a full fine-tuning has nearly all.",
    ),
    Term(
        "Effective rank",
        "How many directions ΔW has in effect: the exponential of the entropy of its singular values (Roy and Vetterli "
        "2007).",
    ),
)


def audit_report(found: Audit, *, max_growth: float | None = None, extraction: Extraction | None = None) -> Report:
    """The report of an audit.

    Args:
        found: The audit.
        max_growth: A limit of κ(W1) / κ(W0) to judge the last checkpoint by.
        extraction: The adapter that was made of the last checkpoint.

    Raises:
        ValueError: ``max_growth`` is not above 1.
    """
    limit = next(iter(limits_of({}, max_growth)), None)
    last, labels = found.series[-1], _labels(found.series)
    level = words.level(last, limit)
    return Report(
        title="Audit of an edited model",
        subtitle=f"{listed(labels, 3)}, against {_short(found.base)}",
        level=level,
        verdict=words.verdict(found, level),
        summary=[*words.summary(found, labels, limit), *found.notes],
        advice=words.advice(found, level, extraction),
        tiles=_tiles(found, limit, level),
        sections=_sections(found, labels, limit, extraction),
        facts=[("base", found.base), *((label, one.path) for label, one in zip(labels, found.series, strict=True))],
        terms=(*TERMS, *_TERMS),
        answers=words.answers(found, level),
    )


def _short(given: str) -> str:
    return Path(given).name or given


def _labels(series: Sequence[CheckpointAudit]) -> list[str]:
    """Names of the checkpoints, with as much of their path as tells them apart."""
    parts = [Path(one.given).parts for one in series]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({place + 1})" for place, name in enumerate(names)]


def _tiles(found: Audit, limit: Limit | None, level: Level) -> list[Tile]:
    last = found.series[-1]
    worst = last.worst
    ranks = [one.rank for one in last.matrices.values()]
    tiles = [
        Tile("checkpoints", str(len(found.series))),
        Tile("matrices changed", f"{len(last.matrices):,}", f"{last.unchanged:,} tensors unchanged"),
        Tile("other tensors changed", f"{len(last.others):,}"),
    ]
    if last.not_finite:
        tiles.append(Tile("not finite", f"{len(last.not_finite):,}", level="passed"))
    if worst is not None:
        note = "no limit set" if limit is None else f"limit {number(limit.value)}"
        tiles.append(Tile("growth of κ", f"{number(worst.growth)} ×", note, None if limit is None else level))
    if ranks:
        largest = max(one.relative_norm for one in last.matrices.values())
        tiles.append(Tile("‖ΔW‖₂ / σmax(W₀)", number(largest), "above 1, the natural limit" if largest > 1 else ""))
        tiles.append(
            Tile(
                "rank above rounding", f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
            )
        )
    return tiles


def _sections(found: Audit, labels: Sequence[str], limit: Limit | None, extraction: Extraction | None) -> list[Section]:
    sections = []
    if found.changed:
        sections.append(Section("course", "What became of the layers", _charts(found, labels, limit)))
        sections.append(Section("matrices", "All matrices that differ", [_matrices(found, labels)]))
    rest = [_others(found, labels), _not_finite(found, labels), _reshaped(found, labels), _ignored(found, labels)]
    sections.append(Section("rest", "Everything else", rest))
    if extraction is not None:
        sections.append(Section("adapter", "The adapter made of it", [_extraction(extraction)]))
    return sections


def _charts(found: Audit, labels: Sequence[str], limit: Limit | None) -> list[Block]:
    last = found.series[-1]
    by_growth = sorted(found.changed, key=lambda name: -_finite(found.growth(name)[-1]))[:SHOWN]
    more = f"The {SHOWN} that have grown most." if len(found.changed) > SHOWN else ""
    blocks: list[Block] = []
    if len(labels) > 1:
        courses = {name: (tuple(range(len(labels))), tuple(found.growth(name))) for name in by_growth}
        title = "Growth of the condition number over the series"
        blocks.append(
            course_chart(
                "growth",
                title,
                courses,
                ylabel="κ(W₁) / κ(W₀)",
                xlabel="checkpoint",
                limits=[] if limit is None else [limit],
                base=1.0,
                caption=more,
                ticks=labels,
            )
        )
    if last.matrices:
        largest = sorted(last.matrices.values(), key=lambda one: -_finite(one.relative_norm))[:12]
        bars = {one.name: one.relative_norm for one in largest if math.isfinite(one.relative_norm)}
        said = f"The largest is {largest[0].name} with {number(largest[0].relative_norm)}."
        title = f"Size of the change, {labels[-1]}"
        if bars:
            blocks.append(bars_chart("sizes", title, bars, xlabel="‖ΔW‖₂ / σmax(W₀)", described=said))
        first = largest[0]
        curves = {
            label: one.matrices[first.name].singular_values
            for label, one in list(zip(labels, found.series, strict=True))[-SHOWN:]
            if first.name in one.matrices
        }
        blocks.append(
            spectrum_chart("singular", f"Singular values of ΔW in {first.name}", curves, first.sigma_max_base)
        )
    return blocks


def _matrices(found: Audit, labels: Sequence[str]) -> Table:
    rows = [
        _matrix_row(label, one)
        for label, checkpoint in zip(labels, found.series, strict=True)
        for one in checkpoint.matrices.values()
    ]
    columns = ["checkpoint", "matrix", "growth", "κ before", "κ after", "‖ΔW‖₂ / σmax(W₀)", "‖ΔW‖_F / ‖W₀‖_F"]
    columns += ["rank above rounding", "effective rank", "rank for 99 %", "elements changed", "shape"]
    return Table(
        "matrix-list",
        "",
        columns,
        rows,
        numeric=range(2, len(columns)),
        searchable=True,
        filters=labels if 1 < len(labels) <= 12 else (),
        filter_column=0,
    )


def _matrix_row(label: str, one: MatrixChange) -> Row:
    relative = one.delta_frobenius_norm / one.frobenius_norm_base if one.frobenius_norm_base else math.inf
    values = (one.growth, one.condition_number_base, one.condition_number, one.relative_norm, relative)
    return [
        label,
        one.name,
        *(Cell(number(value), value) for value in values),
        Cell(str(one.rank), one.rank),
        Cell(number(one.effective_rank), one.effective_rank),
        Cell(str(one.rank_99), one.rank_99),
        Cell(percent(one.elements_changed), one.elements_changed),
        Cell(_size(one.shape), one.shape[0] * one.shape[1]),
    ]


def _others(found: Audit, labels: Sequence[str]) -> Table:
    rows: list[Row] = [
        [
            label,
            one.name,
            _size(one.shape),
            Cell(number(one.delta_norm), one.delta_norm),
            number(one.base_norm),
        ]
        for label, checkpoint in zip(labels, found.series, strict=True)
        for one in checkpoint.others.values()
    ]
    columns = ["checkpoint", "tensor", "shape", "norm of the change", "norm before"]
    title = "Tensors that are no matrices"
    return Table("other-list", title, columns, rows, numeric=(3, 4), empty="None differs.", wide=True)


def _reshaped(found: Audit, labels: Sequence[str]) -> Table:
    rows: list[Row] = [
        [label, name, _size(before), _size(after)]
        for label, checkpoint in zip(labels, found.series, strict=True)
        for name, (before, after) in checkpoint.reshaped.items()
    ]
    columns = ["checkpoint", "tensor", "shape before", "shape after"]
    return Table("reshaped", "Tensors of another shape, not compared", columns, rows, empty="There is none.", wide=True)


def _not_finite(found: Audit, labels: Sequence[str]) -> Table:
    rows: list[Row] = [
        [label, name, str(before), str(after)]
        for label, checkpoint in zip(labels, found.series, strict=True)
        for name, (before, after) in checkpoint.not_finite.items()
    ]
    columns = ["checkpoint", "tensor", "elements before", "elements after"]
    return Table("not-finite", "NaN or Inf", columns, rows, numeric=(2, 3), empty="There is none.", wide=True)


def _ignored(found: Audit, labels: Sequence[str]) -> Table:
    rows: list[Row] = [
        [label, name] for label, checkpoint in zip(labels, found.series, strict=True) for name in checkpoint.ignored
    ]
    title = "Masks and position tables, which are no weights"
    return Table("ignored", title, ["checkpoint", "tensor"], rows, empty="There is none.", wide=True)


def _extraction(found: Extraction) -> Table:
    rows: list[Row] = [
        [module, Cell(str(rank), rank), Cell(percent(found.errors[module]), found.errors[module]), ""]
        for module, rank in found.ranks.items()
    ]
    rows += [[name, "", Cell("100 %", 1.0), f"left out: {reason}"] for name, reason in found.left_out.items()]
    return Table(
        "extraction",
        f"{found.folder}, {found.factor_bytes / 1e6:,.1f} MB",
        ["module", "rank", "error", ""],
        rows,
        numeric=(1, 2),
        note="The error is ‖ΔW − BA‖_F / ‖ΔW‖_F"
        + ("." if found.error is None else f"; {percent(found.error)} over everything that was compared and differs."),
        wide=True,
    )


def _size(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _finite(value: float) -> float:
    """For sorting: infinity first, what is no number last."""
    return -1.0 if math.isnan(value) else min(value, 1e300)
