"""A model rounded to the dtype in which it will be served, and what it was afterwards."""

from __future__ import annotations

import pytest
import torch

from peft_prune.models.serving import require_serve_dtype, served_as
from tests.talking import outspoken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_it_answers_as_if_loaded_in_that_dtype_and_is_afterwards_as_before(dtype, stored) -> None:
    model = outspoken("llama").to(stored).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.tensor([[3, 7, 9, 11]])
    with torch.no_grad():
        with served_as(model, dtype):
            served = model(ids).logits
        back = model(ids).logits
    other = outspoken("llama").to(stored).float()
    for parameter in other.parameters():  # as transformers loads it: the buffers keep float32
        parameter.data = parameter.data.to(dtype)
    with torch.no_grad():
        assert torch.equal(served, other(ids).logits)
        assert torch.equal(back, outspoken("llama").to(stored).float()(ids).logits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_come_back_where_the_block_ends_with_an_error_and_none_changes_nothing() -> None:
    model = outspoken("llama")
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(RuntimeError), served_as(model, torch.bfloat16):
        raise RuntimeError
    with served_as(model, None):
        assert next(model.parameters()).dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(ValueError, match="serve_dtype: 'int8' is not one of bfloat16, float16, float32"):
        require_serve_dtype("int8")
