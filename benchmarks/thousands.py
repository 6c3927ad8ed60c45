"""Edit one model a thousand times and more, and see what becomes of the first edits, of the last ones and of the rest.

    python benchmarks/thousands.py --model MODEL --requests edits.json --facts facts.json --text texts.json
    python benchmarks/thousands.py --model MODEL --synthetic 10000 --editor ultraedit --batch 100

Prints one row of a Markdown table at each mark: greedy efficacy of the first and of the last edits that were made by
then (`WINDOW` of each) with the restraint, recall of facts that the base knows, perplexity over the base's, processor
seconds for each edit since the mark before, and the size of the history. With ``--consolidate`` a last row has all
edits trained together, those included that did not take before; with ``--windows N`` the last N edits are trained after
each N, together with N of those before, and every row is of what stands then. With ``--keep`` an edit that does not
take stays in the factors, as it does in the published loops. Synthetic requests are questions about made-up names,
without a subject, answered by a well-known one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peft import get_peft_model

from peft_prune import EditRequest, EditSession, PruneEditConfig, get_editor, load_requests, load_texts, own_moments
from peft_prune.cli.models import load_model, load_tokenizer
from peft_prune.editors.names import NAMES
from peft_prune.evaluation import Fact, exclude_subjects, load_facts, perplexity, recall, recalled
from peft_prune.models.answers import answers_with
from peft_prune.models.generation import greedy_answers

WINDOW = 100
MARKS = (100, 250, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
SYLLABLES = "ba do fe gi lo ma ne pu ri sa te vo za ku mi la".split()
ASKED = ("sign", "patron", "colour", "anthem", "harbour", "dish", "rival", "flower", "motto", "season")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True)
    options.add_argument("--requests", type=Path)
    options.add_argument("--synthetic", type=int, default=0)
    options.add_argument("--editor", default="memit")
    options.add_argument("--batch", type=int, default=10)
    options.add_argument("--restraint", default="log")
    options.add_argument("--every", type=int, default=100, help="edits between two restraints")
    options.add_argument("--facts", type=Path)
    options.add_argument("--text", type=Path)
    options.add_argument("--consolidate", action="store_true")
    options.add_argument("--windows", type=int, help="edits between two consolidations of so many edits and as many")
    options.add_argument("--keep", action="store_true")
    options.add_argument("--history", type=Path)
    given = options.parse_args()
    if (given.requests is None) == (given.synthetic == 0):
        options.error("give --requests or --synthetic")
    requests = synthetic(given.synthetic) if given.requests is None else load_requests(given.requests)
    base, tokenizer = load_model(given.model), load_tokenizer(given.model)
    kept = Kept(base, tokenizer, requests, given.facts, given.text)
    editor = get_editor(given.editor, model=base)
    modules = editor.modules(base)
    moments = own_moments(base, tokenizer, modules, requests=requests) if editor.needs_moments else None
    schedule: dict[str, Any] = {"restrain_every": given.every}
    if given.windows:
        schedule = {"restrain_on": "merge", "consolidate": "every"}
        schedule |= {"consolidate_every": given.windows, "consolidate_window": given.windows}
    layers = list(editor.admitted(base))
    config = PruneEditConfig(restraint=given.restraint, layers_to_transform=layers, **schedule)
    model = get_peft_model(base, config).eval()
    with tempfile.TemporaryDirectory() as folder:
        history = given.history or Path(folder, "edits.db")
        with EditSession(
            *(model, tokenizer, editor),
            **{"statistics": moments, "history": history, "monitor": False, "ask": "plain"},
            look_again=bool(given.windows),  # a window reads again what was seen to be lost
            on_failure="consolidate" if given.consolidate else "keep" if given.keep else "skip",
        ) as session:
            print(HEADER, flush=True)
            marks = [0, *(mark for mark in MARKS if mark < len(requests)), len(requests)]
            for start, mark in pairwise(marks):
                begun = time.process_time()
                session.edit(requests[start:mark], batch_size=given.batch)
                seconds = (time.process_time() - begun) / (mark - start)
                raw = model.edit_state()
                if not session.consolidated:
                    model.restrain()
                print(kept.row(session, requests[:mark], f"{mark:,}", seconds, history), flush=True)
                model.restore_edit_state(raw)
            if given.consolidate:
                begun = time.process_time()
                session.consolidate(progress=True)
                seconds = (time.process_time() - begun) / len(requests)
                print(kept.row(session, requests, f"{len(requests):,}, consolidated", seconds, history), flush=True)


HEADER = (
    f"| edits | took | first {WINDOW} | last {WINDOW} | recall | perplexity | seconds an edit | MB of history |\n"
    "|---|---|---|---|---|---|---|---|"
)


class Kept:
    """What is to be kept, as the base has it."""

    def __init__(
        self, base: Any, tokenizer: Any, requests: Sequence[EditRequest], facts: Path | None, text: Path | None
    ) -> None:
        self._tokenizer = tokenizer
        asked: list[Fact] = [] if facts is None else exclude_subjects(load_facts(facts), requests)[::4]
        known = recalled(base, tokenizer, asked) if asked else []
        self._facts = [fact for fact, knows in zip(asked, known, strict=True) if knows]
        self._texts = [] if text is None else load_texts(text)
        self._perplexity = perplexity(base, tokenizer, self._texts) if self._texts else 0.0

    def row(
        self, session: EditSession, requests: Sequence[EditRequest], mark: str, seconds: float, history: Path
    ) -> str:
        """One row of the table."""
        model = session.model
        took = sum(result.took for result in session.results[: len(requests)])
        cells = [
            mark,
            f"{took:,}",
            *(f"{self._held(model, own):.2f}" for own in (requests[:WINDOW], requests[-WINDOW:])),
        ]
        cells.append(f"{recall(model, self._tokenizer, self._facts).value:.3f}" if self._facts else "–")
        wear = perplexity(model, self._tokenizer, self._texts) / self._perplexity if self._texts else None
        cells.append("–" if wear is None else f"{wear:.3f}")
        size = sum(
            path.stat().st_size for path in history.parent.glob(f"{history.name}*") if "moments" not in path.name
        )
        return "| " + " | ".join([*cells, f"{seconds:.3f}", f"{size / 1e6:.1f}"]) + " |"

    def _held(self, model: Any, requests: Sequence[EditRequest]) -> float:
        answers = greedy_answers(model, self._tokenizer, [one.text for one in requests], max_new_tokens=8)
        held = [answers_with(answer, one.target_new) for answer, one in zip(answers, requests, strict=True)]
        return sum(held) / len(held)


def synthetic(count: int) -> list[EditRequest]:
    """So many different questions about made-up names, each with a well-known name for an answer."""
    draw = random.Random(0)
    asked: dict[str, None] = {}
    while len(asked) < count:
        name = "".join(draw.choices(SYLLABLES, k=draw.randint(3, 4))).capitalize()
        asked[f"Question: What is the {draw.choice(ASKED)} of {name}? Answer:"] = None
    return [EditRequest(prompt, None, draw.choice(NAMES)) for prompt in asked]


if __name__ == "__main__":
    main()
