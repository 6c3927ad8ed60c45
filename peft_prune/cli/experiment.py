"""`peft-prune experiment`: sequences of edits under every restraint, measured at every mark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..builtin import (
    ability_items,
    ability_names,
    edit_requests,
    held_out_texts,
    known_facts,
    plain_texts,
)
from ..editors import SecondMoments, collect_second_moments
from ..editors.asking import default_ask, settled
from ..evaluation import (
    Ability,
    AbilityItem,
    Fact,
    exclude_subjects,
    load_facts,
    load_texts,
    without_subjects,
)
from ..evaluation.answers import ROUGE
from ..experiment import (
    MARKS,
    RESTRAINTS,
    Experiment,
    Material,
    Plan,
    Results,
    Schedule,
    Variant,
    draw_figures,
    markdown,
    require_comparable,
    require_table,
    summarize,
    write_table,
)
from ..experiment.measuring import digest
from ..folders import whole_file
from ..models.fingerprint import base_fingerprint
from ..outputs import require_apart, require_outputs
from ..requests import EditRequest, LoadedRequests
from .edit import hyperparameters
from .models import BUILTIN, finite, load_abilities, load_model, load_tokenizer, print_json, require_items
from .options import Ask
from .plain import plain
from .requested import OnBadRecord, fitting, measurable, requested

BUILTIN_REQUESTS = 120
"""More would leave too few facts that name no edited subject."""
BUILTIN_FACTS = 300


def experiment(
    model: Annotated[str, typer.Option(help="Model to edit: a folder, a Hub name, or 'builtin'.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and histories; goes on where it was left.")],
    requests: Annotated[str, typer.Option(help="Edit requests: a file, or 'builtin' with the built-in model.")] = "",
    on_bad_record: OnBadRecord = "fail",
    editor: Annotated[str, typer.Option(help="Editing method.")] = "rome",
    edits: Annotated[str, typer.Option(help="Numbers of edits at which everything is measured.")] = ",".join(
        map(str, MARKS)
    ),
    restraints: Annotated[
        str,
        typer.Option(
            help="Restraints such as none,log:1.2; matched:log:1.2 scales all of ΔW to the norm that log:1.2 leaves, "
            "strengths:log:1.2 first gives every edit its least sufficient strength."
        ),
    ] = ",".join(RESTRAINTS),
    schedule: Annotated[
        str, typer.Option(help="merge, every:N or compounding:N; several with commas between them.")
    ] = "merge",
    abilities: Annotated[
        Optional[list[Path]],
        typer.Option(help="Files of general abilities, one or several. See the docs for the forms."),
    ] = None,
    items: Annotated[int, typer.Option("--ability-items", help="Items of each ability that are used.")] = 100,
    facts: Annotated[Optional[Path], typer.Option(help="Facts the base knows, for recall.")] = None,
    fact_items: Annotated[int, typer.Option(help="Facts that are used.")] = 500,
    text: Annotated[Optional[Path], typer.Option(help="Texts for perplexity.")] = None,
    fluency: Annotated[int, typer.Option(help="Tokens generated for n-gram entropy; 0 leaves it out.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many orders of the edits.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Edits that are computed together.")] = 1,
    layers: Annotated[Optional[str], typer.Option(help="Layers to edit; found by a rule if not given.")] = None,
    set_: Annotated[
        Optional[list[str]], typer.Option("--set", help="A hyperparameter of the editor as name=value; repeatable.")
    ] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="Edit as in the paper: the values, the stopping rule and the one try of the authors' code.",
        ),
    ] = False,
    stats_text: Annotated[Optional[Path], typer.Option(help="Texts for the second moment.")] = None,
    stats: Annotated[Optional[Path], typer.Option(help="A second moment saved earlier.")] = None,
    against: Annotated[
        Optional[list[Path]],
        typer.Option(help="Folders of other experiments on the same model and material, for paired differences."),
    ] = None,
    table: Annotated[str, typer.Option(help="Form of the table: parquet or csv.")] = "csv",
    dtype: Annotated[str, typer.Option(help="Dtype to load the model in.")] = "float32",
    ask: Ask = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Edit in sequence once, evaluate every restraint at every mark; write a table, figures and a summary."""
    require_table(table)
    if stats is not None and stats_text is not None:
        raise ValueError("stats: give --stats or --stats-text, not both")
    _require_folder(out, model)
    written = {name: out / name for name in (f"table.{table}", "summary.json", "summary.md")}
    read = {"requests": requests or None, "facts": facts, "texts": [text, stats_text], "second moment": stats}
    require_outputs(files=written, inputs={"abilities": abilities, **read})
    others = [Results.load(folder) for folder in against or ()]  # what cannot be compared shows first
    require_items(items)
    require_items(fact_items, "fact_items")
    builtin = model == BUILTIN
    plan = Plan(
        model=model if builtin else Path(model).name,
        editor=editor,
        hyperparameters=hyperparameters(layers, set_ or []),
        marks=_numbers(edits),
        variants=tuple(Variant.parse(word) for word in restraints.split(",")),
        schedules=tuple(Schedule.parse(word) for word in schedule.split(",")),
        seeds=seeds,
        batch_size=batch_size,
        fluency_tokens=fluency,
        published=published,
    )
    plan.get_editor()  # what is wrong with them shows before a model is loaded
    given = _requests(requests, builtin, on_bad_record)
    records = given.requests
    plan.order(len(records), 0)  # too few requests show before anything is loaded
    known = _facts(facts, builtin, records, fact_items)
    texts = load_texts(text) if text is not None else held_out_texts() if builtin else []
    material = Material(known, texts, _abilities(abilities, builtin, items), fluency)
    tokenizer, base = load_tokenizer(model), load_model(model, dtype)
    given = replace(given, requests=tuple(settled(given.requests, default_ask(tokenizer, ask))))
    records = fitting(requests, given, base, tokenizer, measurable).requests
    plan.order(len(records), 0)
    moments = _moments(plan, base, tokenizer, records, stats, stats_text, out, not json_output)
    work = Experiment(plan, base, tokenizer, records, out, statistics=moments, material=material, ask=ask)
    for other in others:
        require_comparable(work.facts(), other.facts)
        if not set(plan.marks) & set(other.plan.marks):
            raise ValueError(f"against: no mark of {list(other.plan.marks)} is one of {list(plan.marks)}")
    work.run(progress=not json_output)
    summary = _write(Results(plan, out, work.facts()), others, out, table)
    if json_output:
        print_json(summary)
        return
    Console().print(_overview(summary))
    typer.echo(f"Everything with its intervals is in {out / 'summary.md'}")


def _require_folder(out: Path, model: str) -> None:
    """Raise ValueError where an experiment could not be written or would mix with other files."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; give a folder")
    require_apart(out, {"model": model})
    held = sorted(path.name for path in out.iterdir()) if out.exists() else []
    own = any(name in ("measurements.sqlite", "histories") or name.startswith("second_moments-") for name in held)
    if held and not own:
        raise ValueError(f"out: {out} is no experiment's folder, it holds {held[0]}; give another folder")


SHORT = {
    "efficacy_greedy": "efficacy",
    "generalization_greedy": "general.",
    "locality_greedy": "locality",
    "abilities": "abilities",
    "recall": "recall",
    "perplexity": "ppl",
}


def _overview(summary: dict[str, Any]) -> Table:
    """The figures after the last edit as far as a terminal has room for them."""
    kinds = [kind for kind in SHORT if any(kind in line["figures"] for line in summary["final"])]
    marks = summary["plan"]["marks"]
    table = Table(
        title=f"After {marks[-1]} edits, by free answers; κ as a multiple of the base's",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("variant", overflow="fold")
    for kind in kinds:
        table.add_column(SHORT[kind], justify="right")
    table.add_column("κ ×", justify="right")
    base = [_short(summary["base"].get(kind)) for kind in kinds]
    table.add_row("before", *base, "1")
    for line in summary["final"]:
        growth = line["layers"]["κ(W₀+ΔW) / κ(W₀)"]
        cells = [_short(line["figures"].get(kind)) for kind in kinds]
        name = line["restraint"] if line["schedule"] == "merge" else f"{line['restraint']} ({line['schedule']})"
        table.add_row(plain(name), *cells, "–" if growth is None else f"{growth['value']:.3g}")
    return table


def _short(figure: dict[str, Any] | None) -> str:
    return "–" if figure is None or figure["value"] is None else f"{figure['value']:.3g}"


def _write(results: Results, others: Sequence[Results], out: Path, ending: str) -> dict[str, Any]:
    write_table(list(results.rows()), out / f"table.{ending}")
    summary = summarize(results, others)
    texts = {"summary.json": json.dumps(finite(summary), indent=1), "summary.md": markdown(summary)}
    for name, content in texts.items():
        with whole_file(out / name) as part:
            part.write_text(content, encoding="utf-8")
    try:
        draw_figures(results, out)
    except ModuleNotFoundError:
        Console(stderr=True).print("no figures: install peft-prune[report] for matplotlib")
    return summary


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"edits: {text!r} must be whole numbers with commas between them") from None


def _requests(source: str, builtin: bool, on_bad_record: str) -> LoadedRequests:
    if source and source != BUILTIN:
        return requested(source, None, on_bad_record)
    if not builtin:
        raise ValueError("requests: a file is needed; 'builtin' goes with --model builtin only")
    found = tuple(EditRequest.from_record(record) for record in edit_requests(BUILTIN_REQUESTS))
    return LoadedRequests(found, tuple(range(len(found))))


def _facts(path: Path | None, builtin: bool, requests: Sequence[EditRequest], most: int) -> list[Fact]:
    if path is None and not builtin:
        return []
    facts = load_facts(path) if path else [Fact(one["prompt"], one["object"]) for one in known_facts()]
    return _spread(exclude_subjects(facts, requests), most)


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many, taken evenly over the list."""
    return items if len(items) <= most else [items[index * len(items) // most] for index in range(most)]


_BUILTIN_METRICS = {"reasoning": "solve_rate", "question_answering": "exact_match", "inference": "accuracy"}


def _builtin_abilities(count: int) -> dict[str, Ability]:
    found = {}
    for name in ability_names():
        items = [AbilityItem(i["prompt"], (i["answer"],)) for i in ability_items(name, count, held_out=True, seed=1)]
        found[name] = Ability(name, tuple(items), (_BUILTIN_METRICS[name],) if name in _BUILTIN_METRICS else ROUGE)
    return found


def _abilities(paths: Sequence[Path] | None, builtin: bool, most: int) -> dict[str, Ability]:
    if paths is None:
        return _builtin_abilities(most) if builtin else {}
    return load_abilities(paths, most)


def _moments(
    plan: Plan,
    base: Any,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    stats: Path | None,
    stats_text: Path | None,
    out: Path,
    progress: bool,
) -> SecondMoments | None:
    """Second moments from a file, or taken over texts once and kept for going on."""
    if stats is not None:
        return SecondMoments.load(stats, base=base_fingerprint(base))
    if stats_text is None and plan.model != BUILTIN:
        return None
    texts = load_texts(stats_text) if stats_text is not None else plain_texts(1000)
    editor = plan.get_editor(base)
    texts = without_subjects(texts, requests)
    # kept under what they were taken over, so that other texts do not find them
    kept = out / f"second_moments-{digest([texts, editor.modules(base)])}.safetensors"
    if kept.exists():
        return SecondMoments.load(kept, base=base_fingerprint(base))
    moments = collect_second_moments(base, tokenizer, texts, editor.modules(base), progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    moments.save(kept)
    return moments
