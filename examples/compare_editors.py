"""Edit one model with every editor, with and without PRUNE, and write one table.

Each editor's accumulated update is measured as it stands, and again after the restraint, log with base 1.2, has acted
on it at the end. Results are kept one file each, so an interrupted run goes on where it stopped:

    python examples/compare_editors.py --model counterfact-gpt2-5m --requests counterfact-dev-250.json \\
        --facts known-facts-dev.json --text text-dev.json --limit 200 --out results
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_prune import (
    EditRequest,
    EditSession,
    ProgressCallback,
    PruneEditConfig,
    collect_second_moments,
    editor_names,
    evaluate,
    get_editor,
    layer_conditions,
    load_facts,
    load_requests,
    load_texts,
)
from peft_prune.editors import Editor
from peft_prune.evaluation import Fact, exclude_subjects, without_subjects

ONE_BY_ONE = ("rome",)
COLUMNS = ("efficacy", "efficacy_greedy", "generalization", "locality", "recall")


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.editors.split(","):
        for batch in (1,) if name in ONE_BY_ONE else (1, 20):
            path = arguments.out / f"{name}-{batch}.json"
            if not path.exists():
                path.write_text(json.dumps(run(name, batch, arguments), indent=2))
    table = markdown([json.loads(path.read_text()) for path in sorted(arguments.out.glob("*-*.json"))])
    (arguments.out / "table.md").write_text(table)
    print(table)


def run(name: str, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of one editor: the base's, those after all edits, and those after the restraint."""
    base = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    requests = load_requests(arguments.requests)
    requests, rest = requests[: arguments.limit], requests[arguments.limit :]
    facts, texts = load_facts(arguments.facts), load_texts(arguments.text)
    ordinary = without_subjects([f"{fact.prompt} {fact.object}" for fact in facts], requests)
    editor = trained(name, base, tokenizer, rest + other_objects(facts, requests), ordinary, arguments)
    statistics = collect_second_moments(base, tokenizer, ordinary, editor.modules(base))
    config = PruneEditConfig(
        restraint="log", alpha=1.2, restrain_on="merge", layers_to_transform=list(editor.layers(base))
    )
    model = get_peft_model(base, config).eval()
    start = time.perf_counter()
    print(f"{name}, batches of {batch}")
    callbacks = [ProgressCallback()]
    with EditSession(model, tokenizer, editor, statistics=statistics, callbacks=callbacks, monitor=False) as session:
        outcomes = session.edit(requests, batch_size=batch)
    seconds = (time.perf_counter() - start) / len(requests)
    options: dict[str, Any] = {"facts": exclude_subjects(facts, requests)[:: arguments.every], "texts": texts[:100]}
    edited = evaluate(model, tokenizer, requests, **options)
    unrestrained = conditions(model)
    model.restrain()
    return {
        "editor": editor.pretty_name,
        "batch": batch,
        "layers": list(editor.layers(model)),
        "applied": sum(outcome.took for outcome in outcomes),
        "requested": len(requests),
        "seconds": seconds,
        "before": edited["before"],
        "edited": {**edited["after"], "condition_number": unrestrained},
        "PRUNE": {**evaluate(model, tokenizer, requests, **options)["after"], "condition_number": conditions(model)},
    }


def other_objects(facts: list[Fact], requests: list[EditRequest]) -> list[EditRequest]:
    """To train on: each fact that names no edited subject, with the object of another one."""
    facts = exclude_subjects(facts, requests)
    objects = sorted({fact.object for fact in facts})
    rng = random.Random(0)
    return [EditRequest(prompt="{}", subject=fact.prompt, target_new=rng.choice(objects)) for fact in facts]


def trained(
    name: str,
    base: Any,
    tokenizer: Any,
    training: list[EditRequest],
    ordinary: list[str],
    arguments: argparse.Namespace,
) -> Editor:
    """The editor with its values for this model; MEND is trained on requests that are not edited."""
    editor = get_editor(name, model=base)
    if name != "mend":
        return editor
    path = arguments.out / "mend.safetensors"
    editor.train(base, tokenizer, training, ordinary, path, steps=arguments.mend_steps)  # type: ignore[attr-defined]
    return get_editor(name, model=base, weights=str(path))


def conditions(model: Any) -> float:
    """The largest condition number of the edited layers."""
    return max(condition.condition_number for condition in layer_conditions(model).values())


def markdown(results: list[dict[str, Any]]) -> str:
    names = "editor batch took PRUNE efficacy greedy generalization locality recall perplexity κ seconds".split()
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * 12]
    if results:
        lines.append("| none | | | | " + " | ".join(cells(results[0]["before"])) + " | | |")
    for result in results:
        for restraint, label in (("edited", "no"), ("PRUNE", "yes")):
            figures = result[restraint]
            first = restraint == "edited"
            names = [result["editor"], str(result["batch"]), f"{result['applied']}/{result['requested']}"]
            shown = [*(names if first else ["", "", ""]), label, *cells(figures), f"{figures['condition_number']:.0f}"]
            lines.append("| " + " | ".join([*shown, f"{result['seconds']:.2f}" if first else ""]) + " |")
    return "\n".join(lines) + "\n"


def cells(figures: dict[str, Any]) -> list[str]:
    return [f"{figures[name]['value']:.3f}" for name in COLUMNS] + [f"{figures['perplexity']:.0f}"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=Path, required=True)
    parser.add_argument("--facts", type=Path, required=True, help="known facts, for recall and the second moment")
    parser.add_argument("--text", type=Path, required=True, help="texts for perplexity")
    parser.add_argument("--limit", type=int, default=200, help="edits; MEND is trained on the others and on the facts")
    parser.add_argument("--every", type=int, default=4, help="take every n-th fact for recall")
    parser.add_argument("--mend-steps", type=int, default=400)
    parser.add_argument("--editors", default=",".join(editor_names()))
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
