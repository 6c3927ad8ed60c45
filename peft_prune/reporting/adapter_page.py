"""The report of a saved adapter: what it holds, and what it does to a model where one is given."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import AdapterError
from ..evaluation import Proportion
from ..monitoring import CONDITION_GROWTH, Limit
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from ..tuner import PruneEditConfig
from .courses import spectrum_chart
from .document import Answer, Block, Cell, Level, Report, Row, Section, Table, Tile
from .limits import level_of, level_with, limits_of, progress
from .measured import evaluation_table, layers_table
from .now import Now
from .redaction import OpenRedactor, Redactor
from .sentences import VERDICTS, with_fallen
from .words import TERMS, count, like_these, number

_FACTOR = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.prune_edit_(?P<side>[AB])\.weight$")


def adapter_report(
    folder: Path,
    *,
    now: Now | None = None,
    requests: Mapping[int, EditRequest] | None = None,
    max_growth: float | None = None,
    redact: bool = False,
    redact_key: str | None = None,
) -> Report:
    """The report of a PRUNE_EDIT adapter.

    Args:
        folder: Folder of the adapter.
        now: The model with this adapter; without it there is nothing to say of condition numbers or answers.
        requests: What was edited, by number, as given to `Now.of`.
        max_growth: A limit of κ(W0 + ΔW) / κ(W0) to judge by.
        redact: Replace what people named, and what models answered, by codes.
        redact_key: A key of one's own.

    Raises:
        AdapterError: The folder holds no whole PRUNE_EDIT adapter.
        ValueError: ``max_growth`` is not above 1.
    """
    config, updates = read_adapter(folder)
    asked = requests or {}
    limit = next(iter(limits_of({}, max_growth)), None)
    growth = {} if now is None else {name: one.growth for name, one in now.figures.items()}
    share = progress(limit, max(growth.values())) if limit is not None and growth else None
    limits_level: Level = "open" if share is None else level_of(share)
    fallen = 0 if now is None else sum(not one.holds for one in now.verification.values())
    verdict = VERDICTS[limits_level]
    if fallen:
        verdict = with_fallen(verdict, limits_level, fallen, count(len(asked), "request"))
    redactor = Redactor(redact_key) if redact else OpenRedactor()
    sections = [Section("layers-section", "What it does to the layers", _layers(updates, now))]
    if now is not None and now.evaluation is not None:
        sections.append(Section("measured", "What was measured", [evaluation_table(now.evaluation, redactor.ability)]))
    if now is not None and asked:
        sections.append(Section("edits", "Edits that were asked about", [_answers(asked, now, redactor)]))
    return Report(
        title="An adapter with edits",
        subtitle=f"{redactor.place(folder.name)}, for {_base(config, redactor) or 'a base that it does not name'}",
        level=level_with(limits_level, fallen, len(asked)),
        verdict=verdict,
        summary=_summary(config, updates, growth, limit, now),
        advice=_advice(config, limits_level, now, fallen),
        tiles=_tiles(config, updates, growth, limit, limits_level, now),
        sections=sections,
        facts=_facts(folder, config, redactor),
        terms=TERMS,
        redacted=redact,
        answers=_first_screen(config, updates, limits_level, now),
    )


def _first_screen(
    config: Mapping[str, Any],
    updates: Mapping[str, LowRankUpdate],
    level: Level,
    now: Now | None,
) -> list[Answer]:
    edits, layers = int(config.get("edits") or 0), sum(1 for update in updates.values() if update.rank)
    asked = list(now.verification.values()) if now is not None else []
    fallen = sum(not one.holds for one in asked)
    holds = f"{len(asked) - fallen} of {len(asked)} hold" if fallen else f"Yes, all {len(asked)}"
    growth = "Nobody has looked: give --model and --max-growth" if now is None else VERDICTS[level]
    return [
        Answer("What was changed?", f"{count(edits, 'edit')} in {count(layers, 'layer')}"),
        Answer(
            "Does it hold?",
            holds if asked else "Nobody has asked: give --model and --requests",
            level_with("good", fallen, len(asked)) if asked else "open",
        ),
        Answer("Is the model still good?", growth, None if fallen and level == "good" else level),
    ]


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, LowRankUpdate]]:
    """Configuration and factors of a saved adapter, by module name, without a model.

    Raises:
        AdapterError: The folder holds no whole PRUNE_EDIT adapter.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind = config.get("peft_type") if isinstance(config, dict) else None
        if kind != "PRUNE_EDIT":
            raise AdapterError(f"adapter: {folder} is of type {kind}, PRUNE_EDIT is accepted")
        PruneEditConfig.from_pretrained(str(folder))  # its values are checked
        tensors = load_file(folder / "adapter_model.safetensors")
    except AdapterError as error:
        raise AdapterError(f"{error} ({folder})" if str(folder) not in str(error) else str(error)) from None
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise AdapterError(f"adapter: {folder} cannot be read: {error}") from None
    sides: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        found = _FACTOR.match(key)
        if found:
            sides.setdefault(found["module"], {})[found["side"]] = tensor
    if not sides or any(set(own) != {"A", "B"} for own in sides.values()):
        raise AdapterError(f"adapter: {folder} lacks factors of a layer; the file is incomplete")
    if not all(bool(tensor.isfinite().all()) for own in sides.values() for tensor in own.values()):
        raise AdapterError(f"adapter: {folder} holds factors with NaN or Inf")
    try:
        return config, {name: LowRankUpdate(own["B"], own["A"]) for name, own in sides.items()}
    except (ValueError, TypeError) as error:
        raise AdapterError(f"adapter: {folder} holds no factors of an update: {error}") from None


def _layers(updates: Mapping[str, LowRankUpdate], now: Now | None) -> list[Block]:
    spectra = {name: update.singular_values().tolist() for name, update in updates.items()}
    rows: list[Row] = [
        [
            name,
            Cell(str(updates[name].rank), updates[name].rank),
            Cell(number(values[0] if values else 0.0), values[0] if values else 0.0),
            Cell(number(updates[name].frobenius_norm()), updates[name].frobenius_norm()),
        ]
        for name, values in spectra.items()
    ]
    columns = ["layer", "rank of ΔW", "‖ΔW‖₂", "‖ΔW‖_F"]
    blocks: list[Block] = [Table("factors", "Factors in the file", columns, rows, numeric=(1, 2, 3))]
    held = {name: values for name, values in spectra.items() if values}
    if held:
        largest = max(held, key=lambda name: held[name][0])
        sigma = None if now is None else now.spectra[largest][1]
        blocks.append(
            spectrum_chart("singular", f"Largest directions of ΔW in {largest}", {"ΔW": held[largest][:200]}, sigma)
        )
    if now is not None:
        blocks.append(layers_table({name: vars(one) for name, one in now.figures.items()}, "now"))
    return blocks


def _answers(requests: Mapping[int, EditRequest], now: Now, redactor: Redactor) -> Table:
    rows: list[Row] = []
    for index, request in requests.items():
        found = now.verification[index]
        state = "holds" if found.holds else "does not hold"
        rows.append(
            [
                Cell(str(index), index),
                redactor.code(request.name),
                redactor.relation(request.relation_id or request.prompt),
                redactor.code(request.target_new),
                redactor.answer(found.answer.strip(), request),
                Cell(f"{found.probability:.2f}", found.probability),
                Cell(state, state, "good" if found.holds else "passed", mark=True),
            ]
        )
    columns = ["request", "subject", "relation", "new target", "answer now", "probability", "state"]
    return Table(
        "edit-list",
        "",
        columns,
        rows,
        numeric=(0, 5),
        searchable=True,
        filters=("holds", "does not hold"),
        filter_column=6,
        note="The answer is the model's own, free one to the bare prompt.",
    )


def _summary(
    config: Mapping[str, Any],
    updates: Mapping[str, LowRankUpdate],
    growth: Mapping[str, float],
    limit: Limit | None,
    now: Now | None,
) -> list[str]:
    held = [name for name, update in updates.items() if update.rank]
    edits, layers = int(config.get("edits") or 0), count(len(held), "layer")
    what = count(edits, "edit") if edits else "changes that were not made as edits"
    said = [f"The adapter holds {what} in {layers}."]
    said.append(
        f"It has been restrained ({_restraint(config)})." if config.get("restrained") else "It has not been restrained."
    )
    if growth:
        worst = max(growth, key=growth.__getitem__)
        allowed = "" if limit is None else f"; at most {number(limit.value)} is allowed"
        said.append(f"The condition number of {worst} is {number(growth[worst])} times the base's{allowed}.")
    if now is not None and now.verification:
        holds = Proportion.of(one.holds for one in now.verification.values())
        kept = sum(one.holds for one in now.verification.values())
        said.append(
            f"Asked freely, the model gives the new answer to {kept} of {holds.n} requests, {like_these(holds)}."
        )
    return said


def _advice(config: Mapping[str, Any], level: Level, now: Now | None, fallen: int) -> list[str]:
    said = []
    if now is None:
        said.append(
            "Give --model to see what the adapter does to the condition numbers, and --requests to see what holds."
        )
    elif level == "open":
        said.append("Give --max-growth to judge the condition number by.")
    if level == "passed" and not config.get("restrained"):
        said.append("Restrain it: peft-prune restrain writes a restrained adapter beside this one.")
    elif level == "passed":
        said.append("Take the edits from their history with a stronger restraint (peft-prune tune), or undo some.")
    if fallen:
        verb = "does" if fallen == 1 else "do"
        said.append(f"{count(fallen, 'request')} {verb} not hold; the table says which.")
    return said or ["Nothing needs to be done."]


def _tiles(
    config: Mapping[str, Any],
    updates: Mapping[str, LowRankUpdate],
    growth: Mapping[str, float],
    limit: Limit | None,
    level: Level,
    now: Now | None,
) -> list[Tile]:
    tiles = [
        Tile("edits", f"{int(config.get('edits') or 0):,}"),
        Tile("layers", str(sum(1 for update in updates.values() if update.rank))),
        Tile("largest rank", str(max((update.rank for update in updates.values()), default=0))),
        Tile("restrained", "yes" if config.get("restrained") else "no", _restraint(config)),
    ]
    if growth:
        note = "no limit set" if limit is None else f"limit {number(limit.value)}"
        fallen = now is not None and not all(one.holds for one in now.verification.values())
        coloured = limit is not None and limit.figure == CONDITION_GROWTH and not (fallen and level == "good")
        tiles.append(Tile("growth of κ", f"{number(max(growth.values()))} ×", note, level if coloured else None))
    if now is not None and now.verification:
        holds = Proportion.of(one.holds for one in now.verification.values())
        kept = sum(one.holds for one in now.verification.values())
        held_level = level_with("good", holds.n - kept, holds.n)
        state = "" if kept == holds.n else f"{holds.n - kept:,} do not hold"
        tiles.append(Tile("hold now", f"{kept:,} of {holds.n:,}", like_these(holds), held_level, state))
    return tiles


def _restraint(config: Mapping[str, Any]) -> str:
    name = str(config.get("restraint", "none"))
    return f"{name}, α = {config['alpha']:g}" if name == "log" and config.get("alpha") else name


def _base(config: Mapping[str, Any], redactor: Redactor) -> str:
    return redactor.place(str(config.get("base_model_name_or_path") or ""))


def _facts(folder: Path, config: Mapping[str, Any], redactor: Redactor) -> Sequence[tuple[str, str]]:
    return [
        ("adapter", redactor.place(str(folder))),
        ("base", _base(config, redactor) or "not named"),
        ("restraint", _restraint(config)),
        ("peft", str(config.get("peft_version", "not named"))),
    ]
