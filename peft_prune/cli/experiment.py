"""`peft-prune experiment`: sequences of edits under every restraint, measured at every mark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..folders import whole_file
from ..moving import moving_bar
from ..outputs import require_apart, require_outputs
from ..requests import EditRequest, LoadedRequests
from ..requests.asking import PLAIN
from .edit import hyperparameters
from .moments import MomentsSource, Stats, StatsText, StatsTokens
from .options import AbilityAsk, Ask, EditorName, GgufFile, JsonOutput, Settings
from .placement import Placement, placed
from .places import BUILTIN, has_own_name, in_gguf
from .plain import close_with, plain, say, shows_progress
from .requested import OnBadRecord, fitting, measurable, requested

if TYPE_CHECKING:
    from rich.table import Table

    from ..editors import SecondMoments
    from ..evaluation import Ability, Fact
    from ..experiment import Plan, Results

BUILTIN_REQUESTS = 120
"""More would leave too few facts that name no edited subject."""
BUILTIN_FACTS = 300


@placed
def experiment(
    model: Annotated[str, typer.Option(help="Model to edit: a folder, a Hub name, or 'builtin'.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and histories; goes on where it was left.")],
    requests: Annotated[str, typer.Option(help="Edit requests: a file, or 'builtin' with the built-in model.")] = "",
    on_bad_record: OnBadRecord = "fail",
    editor: EditorName = "rome",
    edits: Annotated[str, typer.Option(help="Numbers of edits at which everything is measured.")] = "10,20,40,60,100",
    restraints: Annotated[
        str,
        typer.Option(
            help="Restraints such as none,log:1.2; matched:log:1.2 scales all of ΔW to the norm that log:1.2 leaves, "
            "strengths:log:1.2 first gives every edit its least sufficient strength."
        ),
    ] = "none,scale,clip,linear,log:e,log:2,log:1.5,log:1.2",
    schedule: Annotated[
        str, typer.Option(help="merge, every:N, compounding:N or compensated:N; several with commas between them.")
    ] = "merge",
    abilities: Annotated[
        Optional[list[Path]],
        typer.Option(help="Files of general abilities, one or several. See the docs for the forms."),
    ] = None,
    items: Annotated[int, typer.Option("--ability-items", help="Items of each ability that are used.")] = 100,
    ability_ask: AbilityAsk = "plain",
    facts: Annotated[Optional[Path], typer.Option(help="Facts the base knows, for recall.")] = None,
    fact_items: Annotated[int, typer.Option(help="Facts that are used.")] = 500,
    known: Annotated[
        bool, typer.Option("--known", help="Ask the model all facts first, and use those that it knows.")
    ] = False,
    text: Annotated[Optional[Path], typer.Option(help="Texts for perplexity.")] = None,
    fluency: Annotated[int, typer.Option(help="Tokens generated for n-gram entropy; 0 leaves it out.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many orders of the edits.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Edits that are computed together.")] = 1,
    layers: Annotated[Optional[str], typer.Option(help="Layers to edit; found by a rule if not given.")] = None,
    set_: Settings = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="Edit as in the paper: the values, the stopping rule and the one try of the authors' code.",
        ),
    ] = False,
    stats_text: StatsText = None,
    stats: Stats = None,
    stats_tokens: StatsTokens = None,
    against: Annotated[
        Optional[list[Path]],
        typer.Option(help="Folders of other experiments on the same model and material, for paired differences."),
    ] = None,
    table: Annotated[str, typer.Option(help="Form of the table: parquet or csv.")] = "csv",
    gguf_file: GgufFile = None,
    dtype: Annotated[str, typer.Option(help="Dtype to load the model in.")] = "float32",
    ask: Ask = None,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Edit in sequence once, evaluate every restraint at every mark; write a table, figures and a summary."""
    from rich.console import Console

    from ..builtin import held_out_texts
    from ..editors.asking import default_ask, settled
    from ..evaluation import known_facts, load_texts
    from ..evaluation.tasks import require_askable
    from ..experiment import Experiment, Material, Plan, Results, Schedule, Variant, require_comparable, require_table
    from .models import load_model, load_tokenizer, print_json, require_items

    model = in_gguf(model, gguf_file)
    require_table(table)
    source = MomentsSource(stats, stats_text, stats_tokens)
    _require_folder(out, model)
    written = {name: out / name for name in (f"table.{table}", "summary.json", "summary.md")}
    read = {"requests": requests or None, "facts": facts, "texts": [text, stats_text], "second moment": stats}
    require_outputs(files=written, inputs={"abilities": abilities, **read})
    others = [Results.load(folder) for folder in against or ()]  # what cannot be compared shows first
    require_items(items)
    require_items(fact_items, "fact_items")
    builtin = model == BUILTIN
    if known and facts is None and not builtin:
        raise ValueError("known: there are no facts to ask; give --facts")
    plan = Plan(
        model=str(model) if has_own_name(model) else Path(model).name,
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
    probe = _facts(facts, builtin, records)
    texts = load_texts(text) if text is not None else held_out_texts() if builtin else []
    measured = _abilities(abilities, builtin, items, ability_ask)
    tokenizer = load_tokenizer(model)
    require_askable(tokenizer, measured.values())
    base = load_model(model, dtype, placement)
    given = replace(given, requests=tuple(settled(given.requests, default_ask(tokenizer, ask))))
    method = plan.get_editor(base)

    def taken(model: Any, tokenizer: Any, request: EditRequest) -> None:
        method.require_taken(request)
        measurable(model, tokenizer, request)

    records = fitting(requests, given, base, tokenizer, taken).requests
    plan.order(len(records), 0)
    if known and probe:
        asked = len(probe)
        with moving_bar(total=asked, desc="Facts", unit=" facts", disable=json_output, leave=False) as bar:
            probe = known_facts(base, tokenizer, probe, progress=lambda done, _: bar.update(done - bar.n))
        if not json_output:
            close_with(f"The model knows {len(probe)} of {asked} facts")
    moments = _moments(plan, base, tokenizer, records, source, out, json_output)
    material = Material(_spread(probe, fact_items), texts, measured, fluency)
    work = Experiment(plan, base, tokenizer, records, out, statistics=moments, material=material, ask=ask)
    for other in others:
        require_comparable(work.facts(), other.facts)
        if not set(plan.marks) & set(other.plan.marks):
            raise ValueError(f"against: no mark of {list(other.plan.marks)} is one of {list(plan.marks)}")
    work.run(progress=shows_progress(json_output))
    summary = _write(Results(plan, out, work.facts()), others, out, table)
    if json_output:
        print_json(summary)
        return
    Console().print(_overview(summary))
    close_with(f"Everything with its intervals is in {out / 'summary.md'}")


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
    from rich import box
    from rich.table import Table

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
    from ..experiment import draw_figures, markdown, summarize, write_table
    from .models import finite

    write_table(list(results.rows()), out / f"table.{ending}")
    summary = summarize(results, others)
    texts = {"summary.json": json.dumps(finite(summary), indent=1), "summary.md": markdown(summary)}
    for name, content in texts.items():
        with whole_file(out / name) as part:
            part.write_text(content, encoding="utf-8")
    try:
        draw_figures(results, out)
    except ModuleNotFoundError:
        say("no figures: pip install 'peft-prune[report]' for matplotlib", err=True)
    return summary


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"edits: {text!r} must be whole numbers with commas between them") from None


def _requests(source: str, builtin: bool, on_bad_record: str) -> LoadedRequests:
    from ..builtin import edit_requests

    if source and source != BUILTIN:
        return requested(source, None, on_bad_record)
    if not builtin:
        raise ValueError("requests: a file is needed; 'builtin' goes with --model builtin only")
    found = tuple(EditRequest.from_record(record) for record in edit_requests(BUILTIN_REQUESTS))
    return LoadedRequests(found, tuple(range(len(found))))


def _facts(path: Path | None, builtin: bool, requests: Sequence[EditRequest]) -> list[Fact]:
    from ..builtin import known_facts
    from ..evaluation import Fact, exclude_subjects, load_facts

    if path is None and not builtin:
        return []
    facts = load_facts(path) if path else [Fact(one["prompt"], one["object"]) for one in known_facts()]
    return exclude_subjects(facts, requests)


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many, taken evenly over the list."""
    return items if len(items) <= most else [items[index * len(items) // most] for index in range(most)]


_BUILTIN_METRICS = {"reasoning": "solve_rate", "question_answering": "exact_match", "inference": "accuracy"}


def _builtin_abilities(count: int) -> dict[str, Ability]:
    from ..builtin import ability_items, ability_names
    from ..evaluation import Ability, AbilityItem
    from ..evaluation.answers import ROUGE

    found = {}
    for name in ability_names():
        items = [AbilityItem(i["prompt"], (i["answer"],)) for i in ability_items(name, count, held_out=True, seed=1)]
        found[name] = Ability(name, tuple(items), (_BUILTIN_METRICS[name],) if name in _BUILTIN_METRICS else ROUGE)
    return found


def _abilities(paths: Sequence[Path] | None, builtin: bool, most: int, ask: str) -> dict[str, Ability]:
    from .models import load_abilities

    if paths is None and builtin and ask == PLAIN:
        return _builtin_abilities(most)
    return load_abilities(paths or (), most, ask)


def _moments(
    plan: Plan,
    base: Any,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    source: MomentsSource,
    out: Path,
    quiet: bool,
) -> SecondMoments | None:
    """Second moments from a file or the model's own texts, or taken over texts once and kept for going on."""
    from ..builtin import plain_texts
    from ..editors import SecondMoments
    from ..evaluation import without_subjects
    from ..experiment.measuring import digest
    from ..models.fingerprint import base_fingerprint

    editor = plan.get_editor(base)
    modules = editor.modules(base)
    if source.texts is None and plan.model == BUILTIN and not source.has_file:
        source.texts = plain_texts(1000)
    if source.texts is None:
        needed = editor.needs_moments or source.has_file
        return source.moments(base, tokenizer, modules, requests, quiet) if needed else None
    # kept under what they were taken over, so that other texts do not find them
    texts = without_subjects(source.texts, requests)
    kept = out / f"second_moments-{digest([texts, modules])}.safetensors"
    if kept.exists():
        return SecondMoments.load(kept, base=base_fingerprint(base))
    moments = source.moments(base, tokenizer, modules, requests, quiet)
    out.mkdir(parents=True, exist_ok=True)
    moments.save(kept)
    return moments
