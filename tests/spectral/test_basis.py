"""Factors that follow from ΔW alone."""

from __future__ import annotations

import pytest
import torch

from peft_prune.spectral import LowRankUpdate, cosine_transform, in_own_basis
from tests.tiny import random_update


def cosines(rows: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """|cos| of every row with every key, in float64."""
    rows, keys = rows.double(), keys.double()
    return (rows @ keys.T).abs() / rows.norm(dim=1)[:, None] / keys.norm(dim=1)


def orthogonal_keys(count: int, width: int) -> LowRankUpdate:
    """Edits whose keys are orthogonal and of very different strength: singular vectors are the keys themselves."""
    keys = torch.linalg.qr(torch.randn(width, count, generator=torch.Generator().manual_seed(3))).Q.T
    values = torch.linalg.qr(torch.randn(width, count, generator=torch.Generator().manual_seed(4))).Q
    return LowRankUpdate(B=values * torch.logspace(1, -2, count), A=keys.contiguous())


@pytest.mark.parametrize("update", [random_update((24, 40), 7), orthogonal_keys(7, 40)])
def test_no_row_is_a_key_and_the_product_is_the_same(update: LowRankUpdate) -> None:
    own = in_own_basis(update)
    assert float(cosines(update.A, update.A).diagonal().min()) > 0.999, "appended edits do show their keys"
    assert float(cosines(own.A, update.A).max()) < 0.9
    dense = update.B.double() @ update.A.double()
    assert float((own.B.double() @ own.A.double() - dense).norm()) < 1e-6 * float(dense.norm())


def test_the_order_of_the_edits_and_their_factors_leave_no_trace() -> None:
    update, order = random_update((24, 40), 7), torch.randperm(7, generator=torch.Generator().manual_seed(1))
    shuffled = LowRankUpdate(3 * update.B[:, order], update.A[order] / 3)
    one, other = in_own_basis(update), in_own_basis(shuffled)
    # singular vectors are determined up to their sign
    assert torch.allclose((one.A.T @ one.A), (other.A.T @ other.A), atol=1e-5)
    signs = (cosine_transform(7).float() @ one.A * (cosine_transform(7).float() @ other.A)).sum(1)
    assert torch.allclose(signs.abs(), torch.ones(7), atol=1e-4)


@pytest.mark.parametrize("rank", [0, 1, 2, 9])
def test_any_rank_and_dtype(rank: int) -> None:
    for dtype, most in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float64, 1e-13)):
        update = random_update((6, 8), rank).to(dtype=dtype)
        own = in_own_basis(update)
        assert own.dtype == dtype and own.rank == min(rank, 6)
        gap = own.B.double() @ own.A.double() - update.B.double() @ update.A.double()
        assert float(gap.norm()) <= most * max(float((update.B.double() @ update.A.double()).norm()), 1e-30)


def test_the_transform_is_orthogonal_and_no_entry_is_near_one() -> None:
    for size in (2, 3, 8, 33):
        matrix = cosine_transform(size)
        assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
        assert float(matrix.abs().max()) < 0.82
