"""`peft-prune consolidate`: train all edits of a history together, within the restraint's singular values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..outputs import require_outputs
from .edit import say_fallen, standing_by_state
from .options import BaseModel, Dtype, GgufFile, HistoryFile, JsonOutput, Overwrite
from .placement import Placement, placed
from .places import in_gguf
from .plain import close_with, shows_progress

if TYPE_CHECKING:
    from ..session import ConsolidationResult


@placed
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
    neighbor_beta: Annotated[Optional[float], typer.Option(help="Weight of the edits' prompts about others.")] = None,
    learning_rate: Annotated[
        Optional[float], typer.Option(help="Follows the size of the factors if not given.")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="By how many nats each target shall stand before the next best token.")
    ] = 1.0,
    keep_chat: Annotated[
        bool, typer.Option(help="Keep what the base answers in chat about others as well, at some cost to the edits.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of texts, contexts and batches.")] = 0,
    dtype: Dtype = "float32",
    gguf_file: GgufFile = None,
    overwrite: Overwrite = False,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Train the effective factors of all edits that stand together; raw factors and edits stay in the history."""
    from ..consolidation import ConsolidationSettings
    from ..evaluation import load_texts
    from .models import print_json, resumed

    model = in_gguf(model, gguf_file)
    weights = {"beta": beta, "neighbor_beta": neighbor_beta}
    values: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, **weights}
    # what is wrong shows before a model is loaded
    settings = ConsolidationSettings(margin=margin, keep_chat=keep_chat, seed=seed, **values)
    given = None if texts is None else load_texts(texts)
    require_outputs(
        folders={"out": out}, inputs={"history": history, "model": model, "texts": texts}, overwrite=overwrite
    )
    with resumed(history, model, dtype, placement) as session:
        session.shows_bars = shows_progress(json_output)
        found = session.consolidate(given, settings, progress=session.shows_bars)
        session.save(out, overwrite=overwrite)
        results = session.results
    if json_output:
        print_json({**_told(found), **standing_by_state(results), "adapter": str(out)})
        return
    before = sum(margin > 0 for margin in found.margins_before.values())
    close_with(
        f"{found.held} of {len(found.edits)} edits hold ({before} before) after {found.steps} steps; divergence "
        f"from the base {found.divergence:.4f} nats a token ({found.divergence_before:.4f} before); adapter in {out}"
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
        "neighbor_beta": found.settings.neighbor_beta,
        "keep_chat": found.settings.keep_chat,
        "seed": found.settings.seed,
        "seconds": found.seconds,
    }
