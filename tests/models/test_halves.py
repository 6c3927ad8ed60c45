"""Passes in bfloat16 with rounded weights, which give way to the model's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peft_prune.models.halves import Halves, computes_in_bfloat16
from tests.tiny import willing

IDS = torch.tensor([[3, 5, 7, 11]])
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_passes_are_those_of_autocast_and_weights_are_as_before(kind: str) -> None:
    model = willing(kind).requires_grad_(False)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    before = model(IDS).logits
    halves = Halves([model], CPU)
    with halves.acting():
        found = model(IDS).logits
        assert any(weight.dtype == torch.bfloat16 for weight in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(IDS).logits
    assert (found.float() - wanted.float()).norm() < 0.02 * wanted.float().norm()
    assert torch.equal(model(IDS).logits, before)
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, weights[name])


def test_gradients_are_near_those_in_float32() -> None:
    model = willing("llama").requires_grad_(False)
    halves = Halves([model], CPU)
    states = model.get_input_embeddings()(IDS).detach().requires_grad_(True)

    def gradient() -> torch.Tensor:
        loss = model(inputs_embeds=states).logits.float().log_softmax(-1)[0, -1, 3]
        return torch.autograd.grad(loss, states)[0]

    exact = gradient()
    with halves.acting():
        rounded = gradient()
    assert torch.cosine_similarity(exact.flatten(), rounded.flatten().float(), dim=0) > 0.99
    assert not torch.equal(exact, rounded)


def test_an_error_puts_the_weights_back_and_what_is_trained_or_no_float32_map_stays() -> None:
    trained, small, norm = nn.Linear(4, 4), nn.Linear(4, 4).to(torch.float16), nn.LayerNorm(4)
    own, frozen = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
    small.requires_grad_(False)
    norm.requires_grad_(False)
    with pytest.raises(KeyError), Halves([trained, small, norm, own, frozen], CPU).acting():
        dtypes = [one.weight.dtype for one in (trained, small, norm, own, frozen)]
        assert dtypes == [torch.float32, torch.float16, torch.float32, torch.float32, torch.bfloat16]
        raise KeyError
    assert frozen.weight.dtype == torch.float32


def test_a_device_without_the_units_is_known() -> None:
    assert not computes_in_bfloat16(torch.device("mps"))
    assert computes_in_bfloat16(CPU) in (True, False)
