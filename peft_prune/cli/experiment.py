"""`peft-prune experiment`: sequences of edits under every restraint, measured at every mark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markdown import Markdown

from ..builtin import (
    ability_items,
    ability_names,
    builtin_model_path,
    edit_requests,
    held_out_texts,
    known_facts,
    plain_texts,
)
from ..editors import SecondMoments, collect_second_moments, get_editor
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
    summarize,
    write_table,
)
from ..fingerprint import base_fingerprint
from ..requests import EditRequest, load_requests
from .edit import hyperparameters
from .models import load_abilities, load_model, load_tokenizer, print_json

BUILTIN = "builtin"
BUILTIN_REQUESTS = 120
"""More would leave too few facts that name no edited subject."""
BUILTIN_FACTS = 300


def experiment(
    model: Annotated[str, typer.Option(help="Model to edit: a folder, a Hub name, or 'builtin'.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and histories; goes on where it was left.")],
    requests: Annotated[str, typer.Option(help="Edit requests: a file, or 'builtin' with the built-in model.")] = "",
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
    stats_text: Annotated[Optional[Path], typer.Option(help="Texts for the second moment.")] = None,
    stats: Annotated[Optional[Path], typer.Option(help="A second moment saved earlier.")] = None,
    against: Annotated[
        Optional[list[Path]],
        typer.Option(help="Folders of other experiments on the same model and material, for paired differences."),
    ] = None,
    table: Annotated[str, typer.Option(help="Form of the table: parquet or csv.")] = "csv",
    dtype: Annotated[str, typer.Option(help="Dtype to load the model in.")] = "float32",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Edit in sequence once, evaluate every restraint at every mark; write a table, figures and a summary."""
    if table not in ("parquet", "csv"):
        raise ValueError(f"table: {table!r} is not one of parquet, csv")
    if stats is not None and stats_text is not None:
        raise ValueError("stats: give --stats or --stats-text, not both")
    others = [Results.load(folder) for folder in against or ()]  # what cannot be compared shows first
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
    )
    get_editor(editor, **plan.hyperparameters)  # what is wrong with them shows before a model is loaded
    records = _requests(requests, builtin)
    plan.order(len(records), 0)  # too few requests show before anything is loaded
    known = _facts(facts, builtin, records, fact_items)
    texts = load_texts(text) if text is not None else held_out_texts() if builtin else []
    material = Material(known, texts, _abilities(abilities, builtin, items), fluency)
    path = str(builtin_model_path()) if builtin else model
    tokenizer, base = load_tokenizer(path), load_model(path, dtype)
    moments = _moments(plan, base, tokenizer, records, stats, stats_text, out, not json_output)
    work = Experiment(plan, base, tokenizer, records, out, statistics=moments, material=material)
    work.run(progress=not json_output)
    summary = _write(Results(plan, out, work.facts()), others, out, table)
    if json_output:
        print_json(summary)
        return
    console = Console()
    console.print(Markdown(markdown(summary)))
    console.print(f"Tables, figures and histories are in {out}", highlight=False)


def _write(results: Results, others: Sequence[Results], out: Path, ending: str) -> dict[str, Any]:
    write_table(list(results.rows()), out / f"table.{ending}")
    summary = summarize(results, others)
    for name, content in (("summary.json", json.dumps(summary, indent=1)), ("summary.md", markdown(summary))):
        part = out / f".{name}.part"
        part.write_text(content, encoding="utf-8")
        part.replace(out / name)
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


def _requests(source: str, builtin: bool) -> list[EditRequest]:
    if source and source != BUILTIN:
        return load_requests(source)
    if not builtin:
        raise ValueError("requests: a file is needed; 'builtin' goes with --model builtin only")
    return [EditRequest.from_record(record) for record in edit_requests(BUILTIN_REQUESTS)]


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
    kept = out / "second_moments.safetensors"
    if stats is not None or kept.exists():
        return SecondMoments.load(stats or kept, base=base_fingerprint(base))
    if stats_text is None and plan.model != BUILTIN:
        return None
    texts = load_texts(stats_text) if stats_text is not None else plain_texts(1000)
    editor = get_editor(plan.editor, model=base, **plan.hyperparameters)
    texts = without_subjects(texts, requests)
    moments = collect_second_moments(base, tokenizer, texts, editor.modules(base), progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    moments.save(kept)
    return moments
