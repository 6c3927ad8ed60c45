"""A job of one or several processes: moments, values, a session that is saved, and an evaluation, all of a tiny model.

``python -m tests.processes.job FOLDER`` under a launcher; every process writes what it has found into the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from peft_prune import EditRequest, EditSession, evaluate, get_editor
from peft_prune.consolidation.tail import Tail
from peft_prune.editors import collect_second_moments
from peft_prune.editors.values import optimize_values
from peft_prune.processes import process_rank
from tests.editors.test_rome import TEXTS
from tests.session.scene import MODULE, REQUESTS, adapted
from tests.talking import spaced_tokenizer
from tests.tiny import willing

EVALUATED = [
    EditRequest(
        request.prompt,
        request.subject,
        request.target_new,
        paraphrase_prompts=(f"the {request.subject} note",),
        neighborhood_prompts=("note sea tin", "the oats eat"),
    )
    for request in REQUESTS
]


def work(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that processes share out, as tensors and as figures."""
    tokenizer = spaced_tokenizer()
    moments = collect_second_moments(willing("gpt2"), tokenizer, TEXTS, [MODULE], batch_size=3, progress=False)
    editor = get_editor("memit", layers=[1], mom2_shrinkage=0.1, mom2_update_weight=1.0, context_lengths=((2, 2),))
    contexts = ("", "tea.", "the sea.")
    settings = editor.hyperparameters.value_settings("block")
    values = optimize_values(willing("gpt2"), tokenizer, REQUESTS, contexts, 1, settings)
    tensors = {"moment": moments.moments[MODULE]} | {f"value {i}": one.delta for i, one in enumerate(values)}
    model = adapted()
    with EditSession(model, tokenizer, editor, statistics=moments, history=folder / "edits.db") as session:
        results = session.edit(REQUESTS, batch_size=len(REQUESTS))
        session.save(folder / "adapter")
        update = dict(model.edited_layers())[MODULE].effective_update("default")
        tensors |= {"B": update.B.detach(), "A": update.A.detach()}
        figures = evaluate(model, tokenizer, EVALUATED, texts=TEXTS[:5], full=True, batch_size=2)
        rows: list[int] = []
        passed = Tail._run
        Tail._run = lambda tail, passages, factors: rows.append(len(passages)) or passed(tail, passages, factors)  # type: ignore[method-assign]
        try:
            session.consolidate(TEXTS, steps=4, neighbors=2, edits_per_step=3, bfloat16=False)
        finally:
            Tail._run = passed  # type: ignore[method-assign]
        trained = dict(model.edited_layers())[MODULE].effective_update("default")
        tensors |= {"consolidated": trained.B.detach() @ trained.A.detach()}
    return tensors, {
        "rows": sum(rows),
        "tokens": moments.tokens,
        "states": [one.status for one in results],
        "evaluation": figures,
    }


def main() -> None:
    from accelerate import PartialState

    PartialState(cpu=True)
    folder = Path(sys.argv[1])
    tensors, figures = work(folder)
    rank = process_rank()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"rank-{rank}.safetensors")
    (folder / f"rank-{rank}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
