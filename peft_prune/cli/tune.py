"""`peft-prune tune`: choose the strength of the restraint on the edits made."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..outputs import require_outputs
from .edit import say_fallen, standing_by_state
from .options import BaseModel, Dtype, GgufFile, HistoryFile, JsonOutput, Overwrite
from .placement import Placement, placed
from .places import in_gguf
from .plain import close_with, plain, shows_progress


@placed
def tune(
    history: HistoryFile,
    model: BaseModel,
    facts: Annotated[Path, typer.Option(help="Facts that the model shall keep: objects with prompt and object.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter under the chosen restraint.")],
    margin: Annotated[
        Optional[float],
        typer.Option(help="First find the least strength of each edit at which its target keeps this probability."),
    ] = None,
    groups: Annotated[str, typer.Option(help="'all': one restraint for all layers; 'layer': one for each.")] = "all",
    plot: Annotated[Optional[Path], typer.Option(help="Image file for the trade-off.")] = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Sweep the strength of the restraint over the edits made, and take what loses nothing and gains most."""
    from rich.console import Console
    from rich.table import Table

    from ..evaluation import exclude_subjects, load_facts, recalled
    from ..reporting.plots import plot_trade_offs, require_picture
    from ..session import calibrate_strengths, tune_restraint
    from .models import print_json, resumed

    model = in_gguf(model, gguf_file)
    require_outputs(
        folders={"out": out},
        files={"plot": plot},
        inputs={"history": history, "model": model, "facts": facts},
        overwrite=overwrite,
    )
    if plot is not None:
        require_picture(plot)
    known = load_facts(facts)
    with resumed(history, model, dtype, placement) as session:
        session.shows_bars = shows_progress(json_output)
        if margin is not None:
            calibrate_strengths(session, margin, progress=shows_progress(json_output))
        requests = [record.request for record in session.history.edits(standing=True) if record.request is not None]
        kept = exclude_subjects(known, requests)
        tokenizer = session.tokenizer

        def probe(edited: Any) -> list[float]:
            return [float(one) for one in recalled(edited, tokenizer, kept)]

        found = tune_restraint(session, probe, groups=groups, progress=shows_progress(json_output))
        if plot is not None:
            plot_trade_offs(found, plot)
        session.save(out, overwrite=overwrite)
        results = session.results
    points = [{**asdict(point), "label": point.label, "is_safe": point.is_safe} for point in found.points]
    if json_output:
        recommended, reference = asdict(found.recommended), asdict(found.reference)
        told = {"points": points, "edits": standing_by_state(results), "adapter": str(out)}
        print_json({"recommended": recommended, "reference": reference, **told})
        return
    table = Table(title="Trade-off: edits that hold, and facts that are kept")
    for column in ("restraint", "edits hold", "facts kept", "κ", ""):
        table.add_column(column, justify="left" if column in ("restraint", "") else "right")
    for point in found.front:
        mark = "recommended" if point == found.recommended else ""
        mark = ", ".join(filter(None, [mark, "configured" if point.restraints == found.reference.restraints else ""]))
        table.add_row(
            plain(point.label), f"{point.success:.3f}", f"{point.retention:.3f}", f"{point.condition_number:.3g}", mark
        )
    Console().print(table)
    close_with(f"Took {found.recommended.label}; adapter in {out}")
    say_fallen(results)
