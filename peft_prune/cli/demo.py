"""`peft-prune demo`: sixty edits into the built-in model, without and with PRUNE, on any machine."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MissingPackageError
from ..folders import whole_folder
from ..outputs import require_outputs
from ..requests import EditRequest
from .plain import close_with
from .progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..editors import Editor, SecondMoments
    from ..session import EditResult

MARK = "demo.json"
LAYER = 0
"""Edits of the built-in model hardly take in its later layers."""
TEXTS = 3000


@dataclass
class Course:
    """Figures after so many edits, without and with the restraint: condition number, mean ability."""

    edits: list[int] = field(default_factory=list)
    condition: dict[str, list[float]] = field(default_factory=lambda: {"edited": [], "PRUNE": []})
    ability: dict[str, list[float]] = field(default_factory=lambda: {"edited": [], "PRUNE": []})


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the adapter, the figure and the numbers.")] = Path(
        "demo-output"
    ),
    edits: Annotated[int, typer.Option(help="Number of sequential edits.")] = 60,
    alpha: Annotated[float, typer.Option(help="Base of the logarithm of the restraint, above 1.")] = 1.5,
    items: Annotated[int, typer.Option(help="Items of each ability in the table.")] = 60,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Edit the built-in model sixty times, restrain the accumulated update, and compare."""
    from rich.console import Console

    from ..builtin import builtin_model_path
    from .models import print_json

    if edits < 1 or items < 1:
        raise ValueError(f"edits: {edits} and items: {items} must be at least 1")
    console = Console(quiet=json_output)
    ours = (out / MARK).is_file()
    require_outputs(folders={"out": out}, inputs={"built-in model": builtin_model_path()}, overwrite=ours)
    with whole_folder(out, overwrite=ours) as folder:
        result = _run(folder, edits, alpha, items, console)
        (folder / MARK).write_text(json.dumps(result, indent=2))
    if json_output:
        print_json(result)
    else:
        close_with(f"Adapter, figure and numbers in {out}")


def _run(folder: Path, edits: int, alpha: float, items: int, console: Console) -> dict[str, Any]:
    from peft import get_peft_model

    from ..builtin import edit_requests, load_builtin_model
    from ..editors import get_editor
    from ..evaluation import comparison_table
    from ..reporting.plots import plot_course
    from ..session import EditSession
    from ..tuner import PruneEditConfig
    from .bars import EditProgress

    base, tokenizer = load_builtin_model()
    requests = [EditRequest.from_record(record) for record in edit_requests(edits)]
    editor = get_editor("rome", model=base, layers=(LAYER,))
    config = PruneEditConfig(
        restraint="log",
        alpha=alpha,
        restrain_on="merge",
        layers_to_transform=list(editor.layers(base)),
        task_type="CAUSAL_LM",
    )
    statistics = _statistics(base, tokenizer, editor, requests)
    model = get_peft_model(base, config)
    course = Course()
    _measure(model, tokenizer, course, 0)
    with progress_bar(quiet=console.quiet) as progress:

        def watch(session: Any, done: int) -> None:
            """Take a point of the course every ten edits."""
            if done % 10 == 0 or done == len(requests):
                _measure(session.model, session.tokenizer, course, done)

        bar = EditProgress(progress, len(requests), watch)
        with EditSession(model, tokenizer, editor, statistics=statistics, callbacks=[bar], monitor=False) as session:
            outcomes = session.edit(requests)
    columns = _columns(model, tokenizer, requests, items, quiet=console.quiet)
    console.print(comparison_table({name: figures for name, (figures, _) in columns.items()}, title=_title(outcomes)))
    console.print(_condition_table(columns))
    try:
        plot_course(course.edits, course.condition, course.ability, folder / "course.png")
        console.print("Figure: course.png", markup=False)
    except MissingPackageError as error:
        console.print(f"No figure: {error}", markup=False)
    agreement = _agreement(model, tokenizer, requests, folder / "adapter")
    console.print(
        "The same adapter unmerged, reloaded and merged: largest difference of a logit "
        f"{agreement['reloaded']:.1e} after reloading, {agreement['merged']:.1e} after merging",
        highlight=False,
    )
    return {
        "requested": len(outcomes),
        "applied": sum(outcome.took for outcome in outcomes),
        "held": sum(outcome.applied for outcome in outcomes),
        "failed": [{"index": o.id - 1, "reason": o.reason} for o in outcomes if not o.took],
        "columns": {name: {**figures, "layers": layers} for name, (figures, layers) in columns.items()},
        "course": asdict(course),
        "logit_difference": agreement,
    }


def _statistics(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, editor: Editor, requests: list[EditRequest]
) -> SecondMoments:
    from ..builtin import plain_texts
    from ..editors import collect_second_moments
    from ..evaluation import without_subjects

    texts = without_subjects(plain_texts(TEXTS), requests)
    return collect_second_moments(base, tokenizer, texts, editor.modules(base), progress=False)


def _measure(model: Any, tokenizer: PreTrainedTokenizerBase, course: Course, edits: int) -> None:
    """One point of the course; the restraint is tried on the raw sum and taken back."""
    from ..monitoring import layer_conditions

    course.edits.append(edits)
    raw = model.edit_state()
    for name in ("edited", "PRUNE"):
        if name == "PRUNE":
            model.restrain()
        course.condition[name].append(max(c.condition_number for c in layer_conditions(model).values()))
        course.ability[name].append(_mean_ability(model, tokenizer))
    model.restore_edit_state(raw)


def _mean_ability(model: Any, tokenizer: PreTrainedTokenizerBase, items: int = 25) -> float:
    from ..builtin import ability_items, ability_names
    from ..evaluation import EXTRACTORS, score_ability

    scores = [
        score_ability(model, tokenizer, ability_items(name, items, held_out=True), extract=EXTRACTORS[name]).value
        for name in ability_names()
    ]
    return sum(score or 0.0 for score in scores) / len(scores)


def _columns(
    model: Any, tokenizer: PreTrainedTokenizerBase, requests: list[EditRequest], items: int, *, quiet: bool
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The table's columns: figures of the base, the edited and the restrained model, and their layers."""
    from ..builtin import ability_items, ability_names, held_out_texts
    from ..evaluation import evaluate

    abilities = {name: ability_items(name, items, held_out=True, seed=1) for name in ability_names()}
    columns = {}
    with progress_bar(quiet=quiet) as progress:
        options: dict[str, Any] = {"texts": held_out_texts(), "abilities": abilities, "progress": progress}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="a restraint is pending")  # the next column has it applied
            edited = evaluate(model, tokenizer, requests, **options)
        columns["edited"] = edited["after"], _layers(model)
        model.restrain()
        columns["edited with PRUNE"] = evaluate(model, tokenizer, requests, **options)["after"], _layers(model)
    base = {name: _base_of(figures) for name, figures in columns["edited"][1].items()}
    return {"before": (edited["before"], base), **columns}


def _layers(model: Any) -> dict[str, Any]:
    from ..monitoring import layer_conditions

    return {name: asdict(condition) for name, condition in layer_conditions(model).items()}


def _base_of(figures: dict[str, Any]) -> dict[str, Any]:
    from ..monitoring import LayerCondition

    none = dict.fromkeys(("edits", "rank", "delta_spectral_norm", "delta_frobenius_norm", "perturbation_bound"), 0)
    none |= {"energy_top": 0, "energy_bottom": 0}
    return asdict(LayerCondition(**{**figures, **none, "condition_number": figures["condition_number_base"]}))


def _condition_table(columns: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> Table:
    from rich.table import Table

    table = Table(title="Edited layers")
    table.add_column("layer")
    for name in columns:
        table.add_column(name, justify="right")
    for layer in next(iter(columns.values()))[1]:
        figures = [layers[layer] for _, layers in columns.values()]
        table.add_row(f"{layer}: κ(W₀+ΔW)", *(f"{f['condition_number']:.1f}" for f in figures))
        table.add_row("‖ΔW‖₂ / σmax(W₀)", *(f"{f['delta_spectral_norm'] / f['sigma_max_base']:.2f}" for f in figures))
        table.add_row("rank of ΔW", *(str(f["rank"]) for f in figures))
    return table


def _title(outcomes: list[EditResult]) -> str:
    took, held = sum(outcome.took for outcome in outcomes), sum(outcome.applied for outcome in outcomes)
    return f"{took} of {len(outcomes)} edits took when they were made, {held} of them hold after all"


def _agreement(
    model: Any, tokenizer: PreTrainedTokenizerBase, requests: list[EditRequest], folder: Path
) -> dict[str, float]:
    """Save, reload on a fresh base, merge; the largest differences of a logit on the edited prompts."""
    import torch
    from peft import PeftModel

    from ..builtin import load_builtin_model

    model.save_pretrained(str(folder))
    reloaded = PeftModel.from_pretrained(load_builtin_model()[0], str(folder), strict_base=True).eval()
    ids = [torch.tensor([tokenizer(request.text)["input_ids"]]) for request in requests]
    with torch.no_grad():
        unmerged = [model(input_ids=x).logits for x in ids]
        again = [reloaded(input_ids=x).logits for x in ids]
        merged_model = reloaded.merge_and_unload(safe_merge=True)
        merged = [merged_model(input_ids=x).logits for x in ids]
    return {
        "reloaded": max(float((a - b).abs().max()) for a, b in zip(unmerged, again, strict=True)),
        "merged": max(float((a - b).abs().max()) for a, b in zip(unmerged, merged, strict=True)),
    }
