"""`peft-prune evaluate`: before and after, on the same requests, from the base model's own outputs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .options import AbilityAsk, Ask, Dtype, GgufFile, JsonOutput
from .placement import Placement, placed
from .places import in_gguf
from .plain import close_with, plain, say
from .progress import progress_bar
from .requested import OnBadRecord, bad_records, fitting, requested

if TYPE_CHECKING:
    from rich.table import Table


@placed
def evaluate(
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hub name.")],
    adapter: Annotated[Path, typer.Option(help="Folder of the adapter, or user/name[@revision] on the Hub.")],
    requests: Annotated[Path, typer.Option(help="The edit requests that were made.")],
    limit: Annotated[Optional[int], typer.Option(help="Use the first so many requests only.")] = None,
    on_bad_record: OnBadRecord = "fail",
    facts: Annotated[
        Optional[Path],
        typer.Option(
            help="Facts the base model knows, a JSON list of {prompt, object}, for recall; those that name an "
            "edited subject are left out."
        ),
    ] = None,
    text: Annotated[Optional[Path], typer.Option(help="Texts for perplexity: a JSON list of strings, or .txt.")] = None,
    abilities: Annotated[
        Optional[list[Path]],
        typer.Option(help="Files of general abilities, one or several. See the docs for the forms."),
    ] = None,
    items: Annotated[int, typer.Option("--ability-items", help="Items of each ability that are used.")] = 100,
    ability_ask: AbilityAsk = "plain",
    fluency: Annotated[int, typer.Option(help="Tokens generated for n-gram entropy; 0 leaves it out.")] = 0,
    full: Annotated[
        bool, typer.Option(help="Add the harmonic score, and the differences with their intervals.")
    ] = False,
    gguf_file: GgufFile = None,
    dtype: Dtype = "float32",
    ask: Ask = None,
    strict_base: Annotated[
        bool, typer.Option(help="Refuse an adapter that was made for other weights; off warns and goes on.")
    ] = True,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Measure the edits and what they cost, before and after, from the base model's own outputs."""
    from rich.console import Console

    from ..editors.asking import default_ask, settled
    from ..evaluation import comparison_table, load_facts, load_texts, require_answerable
    from ..evaluation import evaluate as evaluate_model
    from ..evaluation.tasks import require_askable
    from ..monitoring import layer_conditions
    from ..requests.asking import CHAT
    from .models import load_abilities, load_adapter, load_model, load_tokenizer, print_json, tuner_of

    model = in_gguf(model, gguf_file)
    if fluency < 0:
        raise ValueError(f"fluency: {fluency} must be at least 0")
    given = requested(requests, limit, on_bad_record)
    known = None if facts is None else load_facts(facts)
    texts = None if text is None else load_texts(text)
    tasks = load_abilities(abilities or (), items, ability_ask)
    tokenizer = load_tokenizer(model)
    require_askable(tokenizer, tasks.values())
    edited = load_adapter(load_model(model, dtype, placement), adapter, strict_base=strict_base)
    given = replace(given, requests=tuple(settled(given.requests, default_ask(tokenizer, ask))))
    given = fitting(requests, given, edited, tokenizer, require_answerable)
    with progress_bar(quiet=json_output) as progress:
        figures: dict[str, Any] = evaluate_model(
            edited,
            tokenizer,
            given.requests,
            facts=known,
            texts=texts,
            abilities=tasks or None,
            fluency_tokens=fluency,
            full=full,
            ask=ask,
            progress=progress,
        )
    conditions = layer_conditions(edited)
    figures["layers"] = {name: asdict(condition) for name, condition in conditions.items()}
    figures["restrained"] = tuner_of(edited).peft_config["default"].restrained
    figures |= {"ability_ask": ability_ask} if tasks else {}
    figures |= bad_records(given)
    if json_output:
        print_json(figures)
        return
    Console().print(comparison_table({"before": figures["before"], "after": figures["after"]}))
    if full:
        Console().print(_difference_table(figures["difference"]))
    Console().print(_layer_table(figures["layers"]))
    if ability_ask == CHAT and tasks:
        say("Abilities were asked through the model's chat template.")
    close_with("The adapter has been restrained." if figures["restrained"] else "The adapter is not restrained.")


def _difference_table(differences: dict[str, dict[str, float]]) -> Table:
    from rich.table import Table

    from ..evaluation import signed

    table = Table(title="After minus before, paired by request")
    table.add_column("figure")
    table.add_column("difference [95 % interval]", justify="right")
    for name, gap in differences.items():
        table.add_row(plain(f"{name.replace('_', ' ')} (n = {gap['n']})"), signed(gap))
    return table


def _layer_table(layers: dict[str, dict[str, float]]) -> Table:
    from rich.table import Table

    table = Table(title="Edited layers")
    columns = {
        "rank": "rank",
        "sigma_max_base": "σmax(W₀)",
        "delta_spectral_norm": "‖ΔW‖₂",
        "condition_number_base": "κ(W₀)",
        "condition_number": "κ(W₀+ΔW)",
    }
    table.add_column("layer")
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for name, figures in layers.items():
        table.add_row(plain(name), *(f"{figures[column]:.4g}" for column in columns))
    return table
