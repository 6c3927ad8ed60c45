"""How much a sequence of edits moves ordinary tokens, against what it does where it is to act.

    python benchmarks/perturbation.py edits.db --model MODEL

Of every edited layer, for the raw sum and for what acts, F(raw) or consolidated factors: the root mean square of
‖ΔW k‖ over the edits' own keys (bare prompts, all edits in place), and over ordinary inputs, which is
√tr(ΔW C ΔWᵀ); their ratio; and √(n/d) of n edits and keys of width d. Of all ΔW with ΔW K = R the smallest
tr(ΔW C ΔWᵀ) is tr(R (KᵀC⁻¹K)⁻¹ Rᵀ). For values of one norm, and n keys that are orthogonal in C⁻¹ and have kᵀC⁻¹k = d
as an ordinary key has it on average, that is n‖r‖²/d. Rarer keys are served with less; keys that resemble each other
with more where their values have nothing to do with each other. The second moments are those beside the history.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from peft_prune import EditSession, SecondMoments
from peft_prune.cli.edit import moments_beside
from peft_prune.cli.models import load_model, load_tokenizer
from peft_prune.editors.keys import compute_keys
from peft_prune.spectral import LowRankUpdate


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("history", type=Path)
    options.add_argument("--model", required=True)
    given = options.parse_args()
    model, tokenizer = load_model(given.model), load_tokenizer(given.model)
    moments = SecondMoments.from_pretrained(moments_beside(given.history), model)
    print("| factors | layer | n | at the edits' keys | at ordinary inputs | ratio | √(n/d) |")
    print("|---|---|---|---|---|---|---|")
    with EditSession.resume(given.history, model, tokenizer, statistics=moments, monitor=False) as session:
        if session.model.restraint_is_pending():
            session.model.restrain()
        show(session, "consolidated" if session.consolidated else "F(raw)", moments)
        show(session, "raw", moments)


def show(session: EditSession, state: str, moments: SecondMoments) -> None:
    """A line for each layer."""
    requests = [r.request for r in session.history.edits(standing=True) if r.request is not None]
    requests = [request for request in requests if request.subject is not None]
    layers = dict(session.model.edited_layers())
    for index, name in zip(session.editor.layers(session.model), session.editor.modules(session.model), strict=True):
        keys = compute_keys(session.model, session.tokenizer, requests, [""], index)
        layer, adapter = layers[name], session.workspace.adapter
        update = (layer.raw_update if state == "raw" else layer.effective_update)(adapter).to(torch.float64)
        own = at_keys(update, torch.stack([key.bare for key in keys]).double())
        ordinary = at_ordinary(update, moments.moments[name].double())
        least = math.sqrt(len(requests) / update.shape[1])
        line = [f"{value:.3g}" for value in (own, ordinary, ordinary / own, least)]
        print(f"| {state} | {index} | {len(requests)} | " + " | ".join(line) + " |")


def at_keys(update: LowRankUpdate, keys: Tensor) -> float:
    """Root mean square of ‖ΔW k‖."""
    return float(((keys @ update.A.T) @ update.B.T).square().sum(1).mean().sqrt())


def at_ordinary(update: LowRankUpdate, moment: Tensor) -> float:
    """√tr(ΔW C ΔWᵀ)."""
    return float(((update.A @ moment @ update.A.T) * (update.B.T @ update.B)).sum().sqrt())


if __name__ == "__main__":
    main()
