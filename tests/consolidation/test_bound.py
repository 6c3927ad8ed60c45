"""The bound on an update's singular values, against a dense computation in float64."""

from __future__ import annotations

import pytest
import torch

from peft_prune.consolidation.bound import Bounds, SpectralBound, balanced, within_condition
from peft_prune.errors import EditFailedError
from peft_prune.spectral import LowRankUpdate
from tests.consolidation.scene import adapted_layers
from tests.tiny import random_update


def dense_values(update: LowRankUpdate) -> torch.Tensor:
    return torch.linalg.svdvals(update.B.double() @ update.A.double())


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
def test_singular_values_are_brought_within_the_bound_and_nothing_else_changes(shape: tuple[int, int]) -> None:
    limit, update = random_update(shape, rank=6, seed=1), random_update(shape, rank=6, scale=1.3, seed=2)
    U, s, Vh = torch.linalg.svd(update.B.double() @ update.A.double(), full_matrices=False)
    wanted = U * torch.minimum(s, dense_values(limit)) @ Vh
    assert SpectralBound(limit).hold(update) > 0.1
    held = dense_values(update)
    assert bool((held[:6] <= dense_values(limit)[:6]).all())
    assert torch.allclose(update.B.double() @ update.A.double(), wanted, atol=1e-4 * float(s[0]))


def test_an_update_within_the_bound_stays_bit_for_bit() -> None:
    limit = random_update((16, 24), rank=6, seed=1)
    update = LowRankUpdate(limit.B * 0.9, limit.A.clone())
    before = update.B.clone(), update.A.clone()
    assert SpectralBound(limit).hold(update) == 0.0
    assert torch.equal(update.B, before[0]) and torch.equal(update.A, before[1])


def test_directions_beyond_the_rank_of_the_bound_are_taken_away() -> None:
    limit, update = random_update((16, 24), rank=2, scale=9.0, seed=1), random_update((16, 24), rank=5, seed=2)
    SpectralBound(limit).hold(update)
    assert float(dense_values(update)[2]) < 1e-5 * float(dense_values(update)[0])


def test_balanced_factors_are_the_same_update_with_equal_norms() -> None:
    update = random_update((16, 24), rank=30, scale=100.0)
    found = balanced(update)
    assert found.rank == 16
    assert torch.allclose(found.dense().double(), update.B.double() @ update.A.double(), rtol=1e-4, atol=1e-2)
    assert torch.allclose(found.B.norm(dim=0), found.A.norm(dim=1), rtol=1e-4)


def test_an_update_is_scaled_down_until_the_condition_number_is_within_its_limit() -> None:
    _, layers, updates = adapted_layers()
    (name, layer), update = next(iter(layers.items())), next(iter(updates.values()))
    with layer.base_weight() as weight:
        base = weight.double().clone()

    def condition(share: float) -> float:
        s = torch.linalg.svdvals(base + share * update.B.double() @ update.A.double())
        return float(s[0] / s[-1])

    limit = condition(0.8)
    assert limit < condition(1.0), name
    scaled = LowRankUpdate(update.B.clone(), update.A)
    share = within_condition(scaled, layer, limit)
    assert 0.5 < share < 1.0 and condition(share) <= 1.001 * limit
    assert torch.equal(scaled.B, update.B * share)
    with pytest.raises(EditFailedError, match=r"condition number of .* cannot be brought to the restraint's, 1"):
        within_condition(LowRankUpdate(update.B.clone(), update.A), layer, 1.0)


def test_where_edits_lower_the_condition_number_the_base_s_is_the_bound() -> None:
    _, layers, _ = adapted_layers()
    name, layer = next(iter(layers.items()))
    with layer.base_weight() as weight:
        U, s, Vh = torch.linalg.svd(weight.double(), full_matrices=False)

    def raised(value: float) -> LowRankUpdate:
        """An update that adds this to the smallest singular value."""
        return LowRankUpdate((U[:, -1:] * value).float(), Vh[-1:].float().clone())

    limit, trained = raised(0.5 * float(s[0])), raised(1e-3 * float(s[-1]))
    before = trained.B.clone()
    Bounds({name: limit}, layers).settle({name: trained})
    assert torch.equal(trained.B, before)  # its κ is above that of the limit, and below the base's
