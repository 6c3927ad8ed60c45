"""`peft-prune consolidate`: train all edits of a history together, within the restraint's singular values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..consolidation import ConsolidationSettings
from ..evaluation import load_texts
from ..outputs import require_outputs
from ..session import ConsolidationResult
from .edit import say_fallen, standing_by_state
from .models import print_json, resumed
from .options import BaseModel, Dtype, HistoryFile
from .plain import say


def consolidate(
    history: HistoryFile,
    model: BaseModel,
    out: Annotated[Path, typer.Option(help="Folder for the consolidated adapter.")],
    texts: Annotated[
        Optional[Path],
        typer.Option(
            help="Texts on which the model shall go on saying what the base says: a JSON list or a .txt file; the base "
            "writes them itself if not given."
        ),
    ] = None,
    steps: Annotated[Optional[int], typer.Option(help="Most steps; follows the number of edits if not given.")] = None,
    beta: Annotated[Optional[float], typer.Option(help="Weight of those texts against the edits.")] = None,
    learning_rate: Annotated[
        Optional[float], typer.Option(help="Follows the size of the factors if not given.")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="By how many nats each target shall stand before the next best token.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of texts, contexts and batches.")] = 0,
    dtype: Dtype = "float32",
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Train the effective factors of all edits that stand together; raw factors and edits stay in the history."""
    require_outputs(
        folders={"out": out}, inputs={"history": history, "model": model, "texts": texts}, overwrite=overwrite
    )
    values: dict[str, Any] = {"steps": steps, "beta": beta, "learning_rate": learning_rate}
    settings = ConsolidationSettings(margin=margin, seed=seed, **values)  # what is wrong shows before a model is loaded
    given = None if texts is None else load_texts(texts)
    with resumed(history, model, dtype) as session:
        found = session.consolidate(given, settings, progress=not json_output)
        session.save(out, overwrite=overwrite)
        results = session.results
    if json_output:
        print_json({**_told(found), **standing_by_state(results), "adapter": str(out)})
        return
    before = sum(margin > 0 for margin in found.margins_before.values())
    say(
        f"{found.held} of {len(found.edits)} edits hold ({before} before) after {found.steps} steps; divergence from "
        f"the base {found.divergence:.4f} nats a token ({found.divergence_before:.4f} before); adapter in {out}"
    )
    say_fallen(results)


def _told(found: ConsolidationResult) -> dict[str, Any]:
    return {
        "edits": len(found.edits),
        "steps": found.steps,
        "held": {"before": sum(margin > 0 for margin in found.margins_before.values()), "after": found.held},
        "divergence": {"before": found.divergence_before, "after": found.divergence},
        "unreached": [{"edit": edit, "margin": margin} for edit, margin in found.unreached.items()],
        "learning_rate": found.settings.learning_rate,
        "beta": found.settings.beta,
        "seed": found.settings.seed,
        "seconds": found.seconds,
    }
