"""Factors in half precision: any number of edits and restraints, rounded once."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from peft_prune import PruneEditConfig
from peft_prune.errors import NonFiniteUpdateError
from peft_prune.spectral import LowRankUpdate
from tests.tiny import agree, random_update, tiny_gpt2
from tests.tuner.test_edits import INPUTS, base_weight, dense_log, strong

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
every_dtype = pytest.mark.parametrize("dtype", list(ROUNDING))


def half(dtype: torch.dtype, **config):
    """A tiny GPT-2 in half precision whose adapter is as well; the PEFT model, its layer and the layer's name."""
    model = get_peft_model(
        tiny_gpt2(dtype=dtype), PruneEditConfig(layers_to_transform=[1], **config), autocast_adapter_dtype=False
    ).eval()
    ((name, layer),) = model.edited_layers()
    assert layer.prune_edit_B["default"].weight.dtype == dtype
    return model, layer, name


def error(found: LowRankUpdate, expected: Tensor) -> float:
    return float((found.to(torch.float64).dense() - expected).norm() / expected.norm())


@every_dtype
@pytest.mark.parametrize("count", [2, 60])
@pytest.mark.parametrize("restrain_on", ["every", "merge"])
def test_neither_raw_nor_effective_factors_degrade_with_the_number_of_edits(dtype, count: int, restrain_on) -> None:
    model, layer, name = half(dtype, restrain_every=2, restrain_on=restrain_on)
    updates = [strong(layer, seed, times=0.7) for seed in range(count)]
    for update in updates:
        model.add_edits({name: update})
    model.restrain()
    raw = sum(update.dense().double() for update in updates)
    assert error(layer.raw_update("default"), raw) < 1e-6
    expected = dense_log(raw, base_weight(layer).float(), 1.2)
    # every factor is rounded to half precision once, however often the restraint has acted
    assert error(layer.effective_update("default"), expected) < 3 * ROUNDING[dtype]
    assert model(INPUTS).logits.isfinite().all()


@every_dtype
def test_edits_after_a_restraint_are_added_to_what_it_left(dtype) -> None:
    model, layer, name = half(dtype, restrain_on="merge")
    updates = [strong(layer, seed) for seed in range(5)]
    for update in updates[:3]:
        model.add_edits({name: update})
    model.restrain()
    for update in updates[3:]:
        model.add_edits({name: update})
    first, rest = (sum(u.dense().double() for u in part) for part in (updates[:3], updates[3:]))
    expected = dense_log(first, base_weight(layer).float(), 1.2) + rest
    assert error(layer.effective_update("default"), expected) < 3 * ROUNDING[dtype]
    assert error(layer.raw_update("default"), first + rest) < 1e-6


def test_factors_of_very_different_size_survive_float16() -> None:
    model, layer, name = half(torch.float16, restraint="none")
    update = random_update((layer.out_features, layer.in_features))
    uneven = LowRankUpdate(update.B * 1e7, update.A * 1e-7)
    model.add_edits({name: uneven})
    assert error(layer.effective_update("default"), update.to(torch.float64).dense()) < 2e-3


def test_an_update_too_large_for_float16_is_refused_and_changes_nothing() -> None:
    model, layer, name = half(torch.float16, restraint="none")
    model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    before = layer.effective_update("default").dense()
    with pytest.raises(NonFiniteUpdateError, match=r"too large for torch\.float16 of transformer\.h\.1"):
        model.add_edits({name: random_update((layer.out_features, layer.in_features), scale=1e12)})
    assert torch.equal(layer.effective_update("default").dense(), before)
    assert layer.prune_edit_update["default"].edits == 1


@every_dtype
def test_a_state_a_file_and_training_work_as_with_float32_factors(dtype, tmp_path) -> None:
    model, layer, name = half(dtype, restrain_every=2)
    for seed in range(2):
        model.add_edits({name: strong(layer, seed)})
    state, logits = model.edit_state(), model(INPUTS).logits
    model.add_edits({name: strong(layer, 5)})
    model.restore_edit_state(state)
    assert torch.equal(model(INPUTS).logits, logits)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_gpt2(dtype=dtype), tmp_path, autocast_adapter_dtype=False)
    assert agree(loaded(INPUTS).logits, logits)
    with torch.no_grad():
        layer.prune_edit_B["default"].weight.add_(0.25)
    trained = layer.effective_update("default").to(torch.float64).dense()
    model.restrain()
    expected = dense_log(trained, base_weight(layer).float(), 1.2)
    assert error(layer.effective_update("default"), expected) < 3 * ROUNDING[dtype]
