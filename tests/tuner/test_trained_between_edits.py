"""Training between edits and restraints is carried over, or an error says that it would be lost."""

from __future__ import annotations

import pytest
import torch

from peft_prune.errors import AdapterError, MergedAdapterError
from peft_prune.spectral import LowRankUpdate
from tests.tuner.test_edits import INPUTS, base_weight, dense_log, edited, strong


def trained(model, layer, lr: float = 0.5) -> torch.Tensor:
    """ΔW after one step of an optimizer, float64."""
    before = layer.effective_update("default").dense().clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()(INPUTS, labels=INPUTS).loss.backward()
    optimizer.step()
    model.eval()
    after = layer.effective_update("default").dense()
    assert not torch.allclose(after, before, rtol=1e-4)
    return after.double()


def close(layer, expected: torch.Tensor) -> bool:
    found = layer.effective_update("default").dense().double()
    return torch.allclose(found, expected, atol=1e-5 * float(expected.norm()))


def test_restrain_train_edit_restrain() -> None:
    model, layer, name = edited(restrain_on="merge")
    for seed in range(3):
        model.add_edits({name: strong(layer, seed)})
    model.restrain()
    after = trained(model, layer)
    update = strong(layer, 9)
    model.add_edits({name: update})
    assert close(layer, after + update.dense().double())
    model.restrain()
    assert close(layer, dense_log(after + update.dense().double(), base_weight(layer), 1.2))


def test_restrain_edit_train_restrain() -> None:
    model, layer, name = edited(restrain_on="merge")
    for seed in range(3):
        model.add_edits({name: strong(layer, seed)})
    model.restrain()
    model.add_edits({name: strong(layer, 9)})
    after = trained(model, layer)
    assert model.restraint_is_pending()
    model.restrain()
    assert close(layer, dense_log(after, base_weight(layer), 1.2))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_change_whose_sum_is_zero_is_noticed(seed: int) -> None:
    model, layer, name = edited(restrain_on="merge")
    for offset in range(3):
        model.add_edits({name: strong(layer, seed + offset)})
    model.restrain()
    with torch.no_grad():
        weight = layer.prune_edit_B["default"].weight
        weight[0] += 0.5
        weight[1] -= 0.5
    assert model.restraint_is_pending()


def test_building_anew_what_was_trained_is_refused() -> None:
    model, layer, name = edited(restrain_on="merge")
    model.add_edits({name: strong(layer, 0)})
    state = model.edit_state()
    after = trained(model, layer)
    empty = LowRankUpdate.zeros(layer.out_features, layer.in_features)
    with pytest.raises(AdapterError, match=r"transformer\.h\.1\.mlp\.c_proj were trained after their last edit"):
        layer.set_raw_update("default", empty, edits=0)
    with pytest.raises(AdapterError, match="trained in place, so the state before that cannot be restored"):
        model.restore_edit_state(state)
    assert close(layer, after)


def test_an_edit_an_evaluation_and_a_copy_are_no_training() -> None:
    model, layer, name = edited(restrain_on="every", restrain_every=2)
    for seed in range(3):
        model.add_edits({name: strong(layer, seed)})
        model.train()(INPUTS, labels=INPUTS).loss.backward()
    layer.require_untrained("default")
    raw = sum(strong(layer, seed).dense().double() for seed in range(3))
    model.restrain()
    assert close(layer, dense_log(raw, base_weight(layer), 1.2))


def test_reading_the_delta_changes_no_state() -> None:
    model, layer, name = edited(restrain_on="merge")
    for seed in range(3):
        model.add_edits({name: strong(layer, seed)})
    raw, logits = layer.raw_update("default").dense().double(), model(INPUTS).logits
    delta = layer.get_delta_weight("default").T.double()
    assert torch.allclose(delta, dense_log(raw, base_weight(layer), 1.2), atol=1e-5 * float(raw.norm()))
    assert model.restraint_is_pending() and torch.equal(model(INPUTS).logits, logits)
    assert layer.prune_edit_update["default"].pending == 3


def test_restraining_a_merged_adapter_is_refused_and_changes_nothing() -> None:
    model, layer, name = edited(restrain_on="merge")
    model.add_edits({name: strong(layer, 0)})
    model.merge_adapter()
    merged = model(INPUTS).logits
    for act in (model.restrain, lambda: layer.restore_state("default", layer.state("default"))):
        with pytest.raises(MergedAdapterError, match="merged into"):
            act()
    assert torch.equal(model(INPUTS).logits, merged)
