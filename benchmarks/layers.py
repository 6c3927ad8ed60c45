"""Which layers of a model an editor edits best: the same requests in several choices, each on a fresh adapter.

    python benchmarks/layers.py --model MODEL --requests edits.json --facts facts.json --text texts.json 3,4,5 9,10,11

Prints one row of a Markdown table for each: edits that took when they were made, and of the end greedy efficacy,
generalization and locality (in chat as well, where the model has a template), recall of the facts that the base knows
and perplexity over the base's. Edits are made as `peft-prune edit` makes them, without a consolidation; figures are
taken in the dtype in which the model is served. Of the facts those are asked that the base knows.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from peft import get_peft_model

from peft_prune import EditSession, PruneEditConfig, get_editor, load_requests, load_texts, own_moments
from peft_prune.cli.models import load_model, load_tokenizer, serve_dtype
from peft_prune.editors.asking import default_ask
from peft_prune.evaluation import Evaluation, exclude_subjects, known_facts, load_facts

FIGURES = {
    "efficacy_greedy": "efficacy",
    "efficacy_chat": "in chat",
    "generalization_greedy": "generalization",
    "locality_greedy": "locality",
    "locality_chat": "in chat",
    "recall": "recall",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("layers", nargs="+", help="layers with commas between them; default for the editor's own")
    options.add_argument("--model", required=True)
    options.add_argument("--requests", type=Path, required=True)
    options.add_argument("--edits", type=int, default=60)
    options.add_argument("--neighbors", type=int, default=3, help="of each request that are asked")
    options.add_argument("--editor", default="memit")
    options.add_argument("--batch", type=int, default=10)
    options.add_argument("--facts", type=Path)
    options.add_argument("--text", type=Path)
    given = options.parse_args()
    tokenizer = load_tokenizer(given.model)
    requests = load_requests(given.requests)[: given.edits]
    measured = [replace(one, neighborhood_prompts=one.neighborhood_prompts[: given.neighbors]) for one in requests]
    texts = None if given.text is None else load_texts(given.text)[:100]
    facts = None
    if given.facts is not None:
        asked = exclude_subjects(load_facts(given.facts), requests)
        facts = known_facts(load_model(given.model), tokenizer, asked)
    print(f"| layers | took | {' | '.join(FIGURES.values())} | perplexity | seconds an edit |")
    print("|---" * (len(FIGURES) + 4) + "|", flush=True)
    for wanted in given.layers:
        base = load_model(given.model)
        settings = {} if wanted == "default" else {"layers": tuple(int(layer) for layer in wanted.split(","))}
        editor = get_editor(given.editor, model=base, **settings)
        layers = list(editor.admitted(base))
        moments = None
        if editor.needs_moments:
            moments = own_moments(base, tokenizer, editor.modules(base), requests=requests)
        model = get_peft_model(base, PruneEditConfig(layers_to_transform=layers)).eval()
        served = serve_dtype(given.model, "auto") or "float32"
        ask = {"search_ask": "plain"} if default_ask(tokenizer, None) == "both" else {}
        begun = time.process_time()
        with EditSession(
            model, tokenizer, editor, statistics=moments, serve_dtype=served, monitor=False, **ask
        ) as session:
            took = sum(result.took for result in session.edit(requests, batch_size=given.batch))
        seconds = (time.process_time() - begun) / len(requests)
        model.restrain()
        found = Evaluation(in_dtype(model, served), tokenizer, measured, facts=facts, texts=texts).now()
        cells = [", ".join(map(str, layers)), str(took), *(share(found["after"], name) for name in FIGURES)]
        wear = None if texts is None else found["after"]["perplexity"] / found["before"]["perplexity"]
        print("| " + " | ".join([*cells, "–" if wear is None else f"{wear:.3f}", f"{seconds:.1f}"]) + " |", flush=True)


def in_dtype(model: Any, dtype: str) -> Any:
    """The model with its base in the dtype in which it is served; factors stay as they are."""
    for name, parameter in model.named_parameters():
        if "prune_edit" not in name:
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


def share(figures: dict[str, Any], name: str) -> str:
    """One figure as it stands in the table."""
    value = figures.get(name, {}).get("value")
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
