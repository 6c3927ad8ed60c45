"""Choose the strength of the restraint after sequential edits, and measure the choice on what it was not chosen by.

Facts for the probe are split: every other one is seen while choosing, the rest is measured. Edits are judged by their
bare prompts while choosing; paraphrases and neighborhood prompts are measured only at the end.

    python examples/choose_strength.py --model counterfact-gpt2-5m --requests counterfact-dev-250.json \\
        --facts known-facts-dev.json --edits 60 --out strength

Without ``--model`` it takes the built-in model and its own world.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
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
    calibrate_strengths,
    collect_second_moments,
    get_editor,
    load_builtin_model,
    load_facts,
    load_requests,
    tune_restraint,
)
from peft_prune.builtin import edit_requests, known_facts, plain_texts
from peft_prune.evaluation import Fact, exclude_subjects, recall, recalled, score_requests, without_subjects
from peft_prune.reporting.plots import plot_trade_offs
from peft_prune.session import TradeOffs


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    base, tokenizer, requests, facts, texts = load(arguments)
    facts = exclude_subjects(facts, requests)
    seen, unseen = facts[:: 2 * arguments.every], facts[1::2]
    editor = get_editor(arguments.editor, model=base, **({"layers": arguments.layers} if arguments.layers else {}))
    statistics = collect_second_moments(base, tokenizer, texts, editor.modules(base), progress=False)
    config = PruneEditConfig(restrain_on="merge", alpha=arguments.alpha, layers_to_transform=list(editor.layers(base)))
    model = get_peft_model(base, config).eval()
    callbacks = [ProgressCallback()]
    session = EditSession(model, tokenizer, editor, statistics=statistics, callbacks=callbacks, monitor=False)
    session.edit(requests, batch_size=arguments.batch_size)

    def probe(model: Any) -> Sequence[float]:
        return recalled(model, tokenizer, seen)

    rows = []

    def measure(name: str) -> None:
        scores = score_requests(model, tokenizer, requests, base_answers=None)
        rest = recall(model, tokenizer, unseen)
        condition = max(figures.condition_number for figures in session.figures().values())
        rows.append([name, *(scores[key] for key in COLUMNS), rest, condition])

    measure("no restraint")
    session.restrain()
    measure("configured: " + ", ".join(dict.fromkeys(session.restraints().values())))
    for groups in ("all", "layer") if len(editor.layers(base)) > 1 else ("all",):
        start = time.perf_counter()
        found = tune_restraint(session, probe, groups=groups, choose=False)
        plot_trade_offs(found, arguments.out / f"front-{groups}.png")
        show(found)
        state = model.edit_state()
        model.set_restraints(found.recommended.restraints)
        model.restrain()
        measure(f"recommended ({groups}): {found.recommended.label}, chosen in {time.perf_counter() - start:.0f} s")
        model.set_restraints(found.reference.restraints)
        model.restore_edit_state(state)
    for margin in (0.5, 0.8):
        start = time.perf_counter()
        calibrate_strengths(session, margin)
        name = f"strengths, margin {margin} ({time.perf_counter() - start:.0f} s)"
        measure(f"{name}, then configured")
        found = tune_restraint(session, probe, choose=False)
        plot_trade_offs(found, arguments.out / f"front-margin-{margin}.png")
        show(found)
        session.choose_restraints(found.recommended.restraints)
        measure(f"{name}, then recommended: {found.recommended.label}")
        session.choose_restraints(found.reference.restraints)
    table = markdown(rows)
    (arguments.out / "table.md").write_text(table)
    print(table)


def show(found: TradeOffs) -> None:
    """All settings, with what they lose against the configured one."""
    for point in found.points:
        (success, s_half), (retention, r_half) = point.success_loss, point.retention_loss
        print(
            f"{point.label:20} edits {point.success:.3f} ({-success:+.3f} ± {s_half:.3f})  "
            f"facts {point.retention:.3f} ({-retention:+.3f} ± {r_half:.3f})  κ {point.condition_number:.0f}"
        )


COLUMNS = ("efficacy", "efficacy_greedy", "generalization", "locality")


def load(arguments: argparse.Namespace) -> tuple[Any, Any, list[EditRequest], list[Fact], list[str]]:
    if arguments.model is None:
        base, tokenizer = load_builtin_model()
        requests = [EditRequest.from_record(record) for record in edit_requests(arguments.edits)]
        facts = [Fact(fact["prompt"], fact["object"]) for fact in known_facts()]
        return base, tokenizer, requests, facts, without_subjects(plain_texts(arguments.texts), requests)
    base = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    requests = load_requests(arguments.requests, limit=arguments.edits)
    facts = load_facts(arguments.facts)
    texts = without_subjects([f"{fact.prompt} {fact.object}" for fact in facts], requests)
    return base, AutoTokenizer.from_pretrained(arguments.model), requests, facts, texts


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    names = ["", "efficacy", "greedy", "generalization", "locality", "recall, unseen facts", "κ"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for name, *figures, condition in rows:
        cells = [f"{figure.value:.3f}" for figure in figures]
        lines.append("| " + " | ".join([name, *cells, f"{condition:.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--requests", type=Path)
    parser.add_argument("--facts", type=Path)
    parser.add_argument("--editor", default="rome")
    parser.add_argument("--alpha", type=float, default=1.2, help="the configured base of the logarithm")
    parser.add_argument("--layers", type=lambda text: tuple(int(layer) for layer in text.split(",")))
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="see every n-th of the facts for choosing only")
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--texts", type=int, default=3000, help="of the built-in world, for the second moment")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
