"""Texts that the model writes itself, and second moments over them."""

from __future__ import annotations

import pytest
import torch

from peft_prune import own_moments, own_texts
from peft_prune.builtin import load_builtin_model
from peft_prune.editors.own_texts import OPENINGS
from peft_prune.errors import InvalidRequestError
from peft_prune.models.mlp import mlp_output_modules
from peft_prune.models.tokenization import prompt_ids


@pytest.fixture(scope="module")
def builtin():
    return load_builtin_model()


def test_texts_are_the_same_for_a_seed_and_leave_the_random_state_alone(builtin) -> None:
    model, tokenizer = builtin
    state, flags = torch.get_rng_state(), [parameter.requires_grad for parameter in model.parameters()]
    settings = model.generation_config
    first = own_texts(model, tokenizer, 400, seed=3, length=24, progress=False)
    torch.rand(5)
    assert own_texts(model, tokenizer, 400, seed=3, length=24, progress=False) == first
    assert own_texts(model, tokenizer, 400, seed=4, length=24, progress=False) != first
    torch.set_rng_state(state)
    own_texts(model, tokenizer, 50, progress=False)
    assert torch.equal(torch.get_rng_state(), state) and model.generation_config is settings
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_there_are_at_least_as_many_tokens_as_asked_for_and_one_text_less_would_be_too_few(pair) -> None:
    model, tokenizer = pair
    texts = own_texts(model, tokenizer, 300, length=16, progress=False)
    counts = [len(ids) for ids in prompt_ids(tokenizer, texts)]
    assert 300 <= sum(counts) < 300 + max(counts)
    assert len(set(texts)) > len(texts) / 2


def test_own_moments_are_those_of_the_texts(builtin) -> None:
    model, tokenizer = builtin
    name = mlp_output_modules(model, [1])[1]
    found = own_moments(model, tokenizer, [name], tokens=300, seed=1, progress=False)
    total, count = torch.zeros_like(found.moments[name], dtype=torch.float64), 0
    keys = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: keys.append(args[0][0].double()))
    with torch.no_grad():
        for ids in prompt_ids(tokenizer, own_texts(model, tokenizer, 300, seed=1, progress=False)):
            model(input_ids=torch.tensor([ids]))
            total += keys[-1].T @ keys[-1]
            count += len(ids)
    hook.remove()
    assert found.tokens == count
    torch.testing.assert_close(found.moments[name].double(), total / count, rtol=1e-4, atol=1e-6)


def test_bad_numbers_and_a_model_that_writes_nothing_are_named(builtin, monkeypatch) -> None:
    model, tokenizer = builtin
    for options, message in (({"tokens": 0}, "tokens: 0"), ({"length": 0}, "length: 0")):
        with pytest.raises(ValueError, match=message):
            own_texts(model, tokenizer, **options)
    with pytest.raises(InvalidRequestError, match="no room"):
        own_texts(model, tokenizer, 10, length=1, progress=False)
    monkeypatch.setattr(type(tokenizer), "decode", lambda *args, **options: " ")
    with pytest.raises(InvalidRequestError, match="ends every one at once"):
        own_texts(model, tokenizer, 10, progress=False)


def test_no_opening_names_anything() -> None:
    assert len(set(OPENINGS)) == len(OPENINGS) > 50
