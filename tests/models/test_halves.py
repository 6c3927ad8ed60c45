"""Passes in bfloat16 with rounded weights, which give way to the model's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peft_prune.models.halves import Halves, computes_in_bfloat16
from tests.tiny import willing

IDS = torch.tensor([[3, 5, 7, 11]])
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def with_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every machine."""
    monkeypatch.setattr("peft_prune.models.halves.computes_in_bfloat16", lambda device: True)


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


def test_an_error_puts_the_weights_back_and_what_is_no_float32_map_stays() -> None:
    small, norm, own = nn.Linear(4, 4).to(torch.float16), nn.LayerNorm(4), nn.Linear(4, 4)
    with pytest.raises(KeyError), Halves([small, norm, own], CPU).acting():
        dtypes = [one.weight.dtype for one in (small, norm, own)]
        assert dtypes == [torch.float16, torch.float32, torch.bfloat16]
        raise KeyError
    assert own.weight.dtype == torch.float32


def test_nothing_is_done_where_copies_would_not_fit_or_the_device_has_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    own = nn.Linear(4, 4)
    monkeypatch.setattr("peft_prune.models.halves.MOST_BYTES", 31)
    with Halves([own], CPU).acting():
        assert own.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    monkeypatch.setattr("peft_prune.models.halves.MOST_BYTES", 32)
    with Halves([own], CPU).acting(backward=False):
        assert own.weight.dtype == torch.bfloat16 and torch.is_autocast_enabled("cpu")
    monkeypatch.setattr("peft_prune.models.halves.computes_in_bfloat16", lambda device: False)
    with Halves([own], CPU).acting():
        assert own.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def test_a_device_without_the_units_is_known() -> None:
    assert not computes_in_bfloat16(torch.device("mps"))
