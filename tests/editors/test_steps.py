"""How the search for v* moves."""

from __future__ import annotations

import math

import pytest
import torch

from peft_prune.editors.hyperparameters import SEARCH
from peft_prune.editors.rome import ROMEHyperparameters
from peft_prune.editors.steps import SMALLEST_FALL, AdamSteps, PolyakSteps
from peft_prune.editors.values import optimize_values
from peft_prune.models.tokenization import continuation_ids
from peft_prune.requests import EditRequest

GOAL = -0.5 * math.log(0.9)


def paths(centres: torch.Tensor, floors: torch.Tensor, norms: torch.Tensor, steps: int) -> torch.Tensor:
    """The formula written out, in float64: L = floor + ‖δ − centre‖² / 2."""
    delta = torch.zeros_like(centres)
    for _ in range(steps):
        gradient = delta - centres
        fall = (floors + gradient.square().sum(1) / 2 - GOAL).clamp(min=SMALLEST_FALL)
        length = torch.minimum(fall / gradient.norm(dim=1), 0.2 * norms)
        delta = delta - gradient / gradient.norm(dim=1, keepdim=True) * length[:, None]
    return delta


def test_a_step_is_as_long_as_the_loss_has_still_to_fall() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    floors, norms = torch.tensor([0.0, 0.03, 1.0]).double(), torch.tensor([1.0, 5.0, 100.0]).double()
    delta = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    move = PolyakSteps(delta, norms, 0.9, 0.2)
    moving = torch.ones(3, dtype=torch.bool)
    for _ in range(4):
        move(floors + (delta - centres).square().sum(1) / 2, moving)
    torch.testing.assert_close(delta.detach(), paths(centres, floors, norms, 4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["adam", "polyak"])
def test_a_request_that_has_arrived_is_left_where_it_is(kind: str) -> None:
    delta = torch.zeros(2, 4, requires_grad=True)
    move = AdamSteps(delta, 0.1) if kind == "adam" else PolyakSteps(delta, torch.ones(2), 0.9, 0.2)
    centre = torch.ones(2, 4)
    move((delta - centre).square().sum(1), torch.tensor([True, True]))
    there = delta.detach()[1].clone()
    move((delta - centre).square().sum(1)[:1], torch.tensor([True, False]))
    assert torch.equal(delta.detach()[1], there) and not torch.equal(delta.detach()[0], there)


def test_the_value_that_it_finds_gives_the_target_in_the_whole_model(pair) -> None:
    model, tokenizer = pair
    request = EditRequest(prompt="note sea {}", subject="sane ant", target_new="ten")
    settings = ROMEHyperparameters(**{**SEARCH, "clamp_norm_factor": 50.0, "v_longest_step": 2.0}).value_settings(
        "block"
    )
    (value,) = optimize_values(model, tokenizer, [request], ("",), 1, settings)
    (ids,) = continuation_ids(tokenizer, [request.text], [request.target_new])
    block = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[1]

    def add(module, args, output):
        states = (output[0] if isinstance(output, tuple) else output).clone()
        states[0, len(ids.prompt) - 1] += value.delta
        return (states, *output[1:]) if isinstance(output, tuple) else states

    hook = block.register_forward_hook(add)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*ids.prompt, *ids.target[:-1]]])).logits[0, len(ids.prompt) - 1 :]
    hook.remove()
    found = logits.double().log_softmax(1)[torch.arange(len(ids.target)), torch.tensor(ids.target)].mean().exp()
    assert value.probability >= 0.95 and float(found) == pytest.approx(value.probability, rel=1e-4)
    assert value.steps <= settings.steps
