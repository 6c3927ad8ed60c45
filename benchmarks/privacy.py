"""How well the subjects of edits are recovered from an adapter, before and after the restraint and a consolidation.

    python benchmarks/privacy.py edits.db --model MODEL

Who has the adapter and the base holds candidates up to them: the edited subjects, names like each that the base
writes, and well-known ones, each in the prompt of an edit. Two scores tell edited from others. *Response*:
‖ΔW k‖ / ‖k‖ for the key k of the candidate, the input of the edited layer at its last token. *Rows*: the share of
C⁻¹k, the direction that ROME and MEMIT write for a subject, that lies in the space of A's rows. Printed are the area
under the ROC curve (0.5 is chance) and the share of the n highest candidates that are edited, with n edits, in the
layer that tells most, for the raw sum, F(raw) and the consolidated factors. The second moments are those beside the
history.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from peft_prune import EditRequest, EditSession, SecondMoments
from peft_prune.cli.edit import moments_beside
from peft_prune.cli.models import load_model, load_tokenizer
from peft_prune.editors.keys import compute_keys
from peft_prune.editors.kin import names_alike
from peft_prune.editors.names import NAMES
from peft_prune.spectral import LowRankUpdate

ALIKE = 4
"""Names like each subject."""
DAMPING = 1e-3
"""Of C, as a share of its mean eigenvalue."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("history", type=Path)
    options.add_argument("--model", required=True)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    model, tokenizer = load_model(given.model), load_tokenizer(given.model)
    moments = SecondMoments.from_pretrained(moments_beside(given.history), model)
    with EditSession.resume(given.history, model, tokenizer, statistics=moments, monitor=False) as session:
        consolidated = session.consolidated
        requests = [r.request for r in session.history.edits(standing=True) if r.request is not None]
        requests = [request for request in requests if request.subject is not None]
        with session.model.disable_adapter():
            others = decoys(session, requests, given.seed)
            keys = {
                name: torch.stack(
                    [key.bare for key in compute_keys(model, tokenizer, [*requests, *others], [""], layer)]
                )
                for layer, name in zip(session.editor.layers(model), session.editor.modules(model), strict=True)
            }
        states = {"raw": updates(session, raw=True)}
        if consolidated:
            states["consolidated"] = updates(session)
            session.model.restrain()
        elif session.model.restraint_is_pending():
            session.model.restrain()
        states["F(raw)"] = updates(session)
    print(f"{len(requests)} edits, {len(others)} others, consolidated: {consolidated}")
    print("| factors | response: AUC | of n highest | rows: AUC | of n highest |\n|---|---|---|---|---|")
    for state in ("raw", "F(raw)", "consolidated"):
        if state in states:
            print(f"| {state} | " + " | ".join(cells(states[state], keys, moments, len(requests))) + " |")


def decoys(session: EditSession, requests: Sequence[EditRequest], seed: int) -> list[EditRequest]:
    """Names that no edit is about, each in the prompt of an edit."""
    draw, edited = random.Random(seed), {request.subject for request in requests}
    alike = names_alike(session.model, session.tokenizer, requests, seed)
    found = {(request.prompt, name) for request, names in zip(requests, alike, strict=True) for name in names[:ALIKE]}
    found |= {(draw.choice(requests).prompt, name) for name in NAMES}
    return [EditRequest(prompt, name, "-") for prompt, name in sorted(found) if name not in edited]


def updates(session: EditSession, *, raw: bool = False) -> dict[str, LowRankUpdate]:
    """The factors of every layer, float64."""
    adapter = session.workspace.adapter
    layers = session.model.edited_layers()
    found = {name: layer.raw_update(adapter) if raw else layer.effective_update(adapter) for name, layer in layers}
    return {name: update.to(torch.float64) for name, update in found.items()}


def cells(
    found: Mapping[str, LowRankUpdate], keys: Mapping[str, Tensor], moments: SecondMoments, edited: int
) -> list[str]:
    """Both scores of the layer that tells most, each as AUC and as share of the highest."""
    scores = [[response(update, keys[name].double()) for name, update in found.items()]]
    scores.append([in_rows(update, keys[name].double(), moments.moments[name]) for name, update in found.items()])
    best = [max((area(one, edited), highest(one, edited)) for one in layers) for layers in scores]
    return [f"{value:.3f}" for pair in best for value in pair]


def response(update: LowRankUpdate, keys: Tensor) -> Tensor:
    return ((keys @ update.A.T) @ update.B.T).norm(dim=1) / keys.norm(dim=1)


def in_rows(update: LowRankUpdate, keys: Tensor, moment: Tensor) -> Tensor:
    C = moment.double()
    damped = C + DAMPING * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
    directions = torch.linalg.solve(damped, keys.T).T
    space = torch.linalg.qr(update.A.T).Q
    return (directions @ space).norm(dim=1) / directions.norm(dim=1)


def area(scores: Tensor, edited: int) -> float:
    """Probability that an edited candidate scores higher than another one, ties as a half."""
    own, others = scores[:edited, None], scores[None, edited:]
    return float((own > others).double().mean() + (own == others).double().mean() / 2)


def highest(scores: Tensor, edited: int) -> float:
    """Share of the ``edited`` highest candidates that are edited."""
    return float((scores.topk(edited).indices < edited).double().mean())


if __name__ == "__main__":
    main()
