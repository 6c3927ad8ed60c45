"""Edits, the two kinds of factors, and the schedules, against dense float64 computations."""

from __future__ import annotations

import math

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from peft_prune import PruneEditConfig
from peft_prune.spectral import LowRankUpdate
from tests.tiny import random_update, tiny_gpt2, tiny_llama

INPUTS = torch.tensor([[3, 14, 15, 9, 26, 5]])


def edited(**config):
    """A tiny GPT-2 with an adapter on layer 1; returns the PEFT model, its layer and the layer's name."""
    model = get_peft_model(tiny_gpt2(), PruneEditConfig(layers_to_transform=[1], **config)).eval()
    ((name, layer),) = model.edited_layers()
    return model, layer, name


def dense_log(delta: Tensor, base: Tensor, alpha: float) -> Tensor:
    """F(ΔW) by a full SVD in float64."""
    u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
    m = torch.linalg.svdvals(base.double())[0]
    restrained = torch.where(s > m, torch.minimum((s.log() - m.log()) / math.log(alpha) + m, s), s)
    return u @ torch.diag(restrained) @ vh


def base_weight(layer) -> Tensor:
    """(out, in), whatever the layer stores."""
    weight = layer.get_base_layer().weight.data
    return weight.T if layer.fan_in_fan_out else weight


def strong(layer, seed: int, times: float = 3.0) -> LowRankUpdate:
    """A rank-1 update whose singular value is ``times`` σmax(W0)."""
    update = random_update((layer.out_features, layer.in_features), seed=seed)
    size = float(torch.linalg.svdvals(base_weight(layer).double())[0])
    return update.scaled(times * size / float(torch.linalg.matrix_norm(update.dense(), 2)))


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_a_fresh_adapter_and_a_disabled_one_change_no_bit(build) -> None:
    base = build()
    expected = base(INPUTS).logits
    model = get_peft_model(base, PruneEditConfig()).eval()
    assert torch.equal(model(INPUTS).logits, expected)
    for name, layer in model.edited_layers():
        model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    assert not torch.allclose(model(INPUTS).logits, expected, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(INPUTS).logits, expected)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(model(INPUTS).logits, expected)


@pytest.mark.parametrize(("build", "ending"), [(tiny_gpt2, "mlp.c_proj"), (tiny_llama, "mlp.down_proj")])
def test_the_default_target_is_the_output_projection_of_every_mlp(build, ending: str) -> None:
    model = get_peft_model(build(), PruneEditConfig())
    names = [name for name, _ in model.edited_layers()]
    assert len(names) == 3 and all(name.endswith(ending) for name in names)


def test_the_forward_pass_applies_the_effective_update() -> None:
    model, layer, name = edited(restraint="none")
    update = random_update((layer.out_features, layer.in_features), rank=2)
    model.add_edits({name: update})
    x = torch.randn(4, layer.in_features)
    weight = base_weight(layer).double() + update.B.double() @ update.A.double()
    expected = x.double() @ weight.T + layer.get_base_layer().bias.double()
    assert torch.allclose(layer(x).double(), expected, atol=1e-5)


def test_edits_add_up_in_the_raw_factors_and_the_restraint_acts_on_their_sum_every_n_edits() -> None:
    model, layer, name = edited(restraint="log", alpha=1.2, restrain_on="every", restrain_every=3)
    updates = [strong(layer, seed) for seed in range(7)]
    for count, update in enumerate(updates, start=1):
        model.add_edits({name: update})
        raw = sum(u.dense().double() for u in updates[:count])
        last = 3 * (count // 3)
        # what the schedule has seen is restrained as one sum of raw updates, what came since is added to it
        seen = sum((u.dense().double() for u in updates[:last]), torch.zeros_like(raw))
        expected = dense_log(seen, base_weight(layer), 1.2) + raw - seen
        tolerance = 1e-4 * float(torch.linalg.matrix_norm(raw, 2))
        assert torch.allclose(layer.raw_update("default").dense().double(), raw, atol=tolerance)
        assert torch.allclose(layer.effective_update("default").dense().double(), expected, atol=tolerance)
        assert layer.restraint_is_pending("default") == (count % 3 != 0)


def test_the_compounding_form_restrains_what_is_already_restrained() -> None:
    model, layer, name = edited(restrain_on="compounding", restrain_every=1)
    updates = [strong(layer, seed) for seed in range(3)]
    expected = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    for update in updates:
        model.add_edits({name: update})
        expected = dense_log(expected + update.dense().double(), base_weight(layer), 1.2)
    once = dense_log(sum(u.dense().double() for u in updates), base_weight(layer), 1.2)
    found = layer.effective_update("default").dense().double()
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.norm()))
    assert not torch.allclose(found, once, atol=1e-2 * float(once.norm()))


def test_the_threshold_schedule_acts_when_the_condition_number_has_grown_enough() -> None:
    model, layer, name = edited(restrain_on="threshold", max_condition_growth=3.0)
    base = base_weight(layer).double()
    kappa = torch.linalg.cond(base)
    weak = strong(layer, seed=1, times=0.1)
    model.add_edits({name: weak})
    assert torch.linalg.cond(base + weak.dense().double()) < 3 * kappa
    assert layer.restraint_is_pending("default")
    strong_update = strong(layer, seed=2, times=40.0)
    raw = weak.dense().double() + strong_update.dense().double()
    assert torch.linalg.cond(base + raw) > 3 * kappa
    model.add_edits({name: strong_update})
    assert not layer.restraint_is_pending("default")
    found = layer.effective_update("default").dense().double()
    assert torch.allclose(found, dense_log(raw, base, 1.2), atol=1e-4 * float(raw.norm()))


def test_the_merge_schedule_leaves_the_sequence_unrestrained_until_restrain_is_called() -> None:
    model, layer, name = edited(restrain_on="merge")
    updates = [strong(layer, seed) for seed in range(4)]
    for update in updates:
        model.add_edits({name: update})
    raw = sum(u.dense().double() for u in updates)
    assert torch.allclose(layer.effective_update("default").dense().double(), raw, atol=1e-5 * float(raw.norm()))
    assert model.restraint_is_pending()
    model.restrain()
    expected = dense_log(raw, base_weight(layer), 1.2)
    assert torch.allclose(layer.effective_update("default").dense().double(), expected, atol=1e-5 * float(raw.norm()))
    assert not model.restraint_is_pending()


def test_restraining_twice_is_restraining_once() -> None:
    model, layer, name = edited(restrain_on="merge")
    for seed in range(4):
        model.add_edits({name: strong(layer, seed)})
    model.restrain()
    once = layer.effective_update("default").dense()
    model.restrain()
    assert torch.allclose(layer.effective_update("default").dense(), once, rtol=1e-5, atol=1e-6)


def test_the_rank_is_truncated_after_the_restraint() -> None:
    model, layer, name = edited(restrain_on="merge", max_rank=2)
    updates = [strong(layer, seed) for seed in range(5)]
    for update in updates:
        model.add_edits({name: update})
    assert layer.rank("default") == 5
    model.restrain()
    assert layer.rank("default") == 2
    u, s, vh = torch.linalg.svd(dense_log(sum(x.dense().double() for x in updates), base_weight(layer), 1.2))
    expected = u[:, :2] @ torch.diag(s[:2]) @ vh[:2]
    assert torch.allclose(layer.effective_update("default").dense().double(), expected, atol=1e-4 * float(s[0]))
    assert layer.raw_update("default").rank == 5


def test_more_edits_than_dimensions_do_not_make_the_factors_wider_than_the_weight() -> None:
    model, layer, name = edited(restraint="none")
    updates = [random_update((layer.out_features, layer.in_features), seed=seed) for seed in range(20)]
    for update in updates:
        model.add_edits({name: update})
    assert layer.rank("default") == min(layer.out_features, layer.in_features) == 16
    total = sum(u.dense() for u in updates)
    assert torch.allclose(layer.effective_update("default").dense(), total, atol=1e-4)


def test_going_back_to_a_state_gives_the_same_bits() -> None:
    model, layer, name = edited(restrain_every=2)
    for seed in range(3):
        model.add_edits({name: strong(layer, seed)})
    state, logits = model.edit_state(), model(INPUTS).logits
    raw = layer.raw_update("default").dense()
    model.add_edits({name: strong(layer, 9)})
    assert not torch.equal(model(INPUTS).logits, logits)
    model.restore_edit_state(state)
    assert torch.equal(model(INPUTS).logits, logits)
    assert torch.equal(layer.raw_update("default").dense(), raw)


def test_updates_for_unknown_modules_of_wrong_shape_or_not_finite_are_refused_before_anything_changes() -> None:
    model = get_peft_model(tiny_gpt2(), PruneEditConfig())
    (first, layer), (second, _), *_ = model.edited_layers()
    good = random_update((layer.out_features, layer.in_features))
    with pytest.raises(ValueError, match=r"'lm_head' is not adapted; adapted are transformer\.h\.0\.mlp\.c_proj"):
        model.add_edits({first: good, "lm_head": good})
    with pytest.raises(ValueError, match=r"shape \(64, 16\) does not fit this layer, \(16, 64\) is accepted"):
        model.add_edits({first: good, second: random_update((64, 16))})
    with pytest.raises(ValueError, match="NaN or Inf"):
        model.add_edits({first: good, second: LowRankUpdate(B=good.B * math.inf, A=good.A)})
    assert all(layer.rank("default") == 0 for _, layer in model.edited_layers())


def test_editing_a_merged_adapter_is_refused() -> None:
    model, layer, name = edited()
    update = random_update((layer.out_features, layer.in_features))
    model.add_edits({name: update})
    model.merge_adapter()
    with pytest.raises(RuntimeError, match="unmerge_adapter"):
        model.add_edits({name: update})
    assert layer.rank("default") == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_are_float32_over_a_half_precision_base_unless_asked_otherwise(dtype: torch.dtype) -> None:
    for autocast, expected in ((True, torch.float32), (False, dtype)):
        model = get_peft_model(tiny_gpt2(dtype=dtype), PruneEditConfig(), autocast_adapter_dtype=autocast)
        name, layer = next(iter(model.edited_layers()))
        model.add_edits({name: random_update((layer.out_features, layer.in_features))})
        assert layer.prune_edit_A["default"].weight.dtype == expected
        assert model(INPUTS).logits.dtype == dtype
