"""W₀ + F(ΔW), the restraint, beside W₀ + ΔW + F(ΔW), which several public harnesses compute under its name."""

from __future__ import annotations

import math

import pytest
import torch

from peft_prune.spectral import LogRestraint, LowRankUpdate, restrain, sigma_max


def dense_f(matrix: torch.Tensor, m: float) -> torch.Tensor:
    """The natural logarithm of those harnesses, without a minimum."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u * torch.where(s > m, torch.log(s) - math.log(m) + m, s) @ v


@pytest.mark.parametrize("size", [0.5, 3.0, 30.0])
def test_adding_f_on_top_of_what_it_was_to_replace_is_worse_than_no_restraint(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 40, generator=generator, dtype=torch.float64)
    update = LowRankUpdate(
        torch.randn(20, 4, generator=generator, dtype=torch.float64),
        torch.randn(4, 40, generator=generator, dtype=torch.float64),
    )
    m = sigma_max(weight)
    update = update.scaled(size * m / update.spectral_norm())
    delta = update.dense()
    once = restrain(update, LogRestraint(math.e), m).dense()
    assert torch.allclose(once, dense_f(delta, m), atol=1e-8 * m)
    twice = delta + dense_f(delta, m)
    norm = lambda matrix: float(torch.linalg.matrix_norm(matrix, 2)) / m  # noqa: E731
    assert norm(once) <= norm(delta) + 1e-12 < norm(twice)
    if size < 1:
        assert torch.allclose(twice, 2 * delta, atol=1e-9 * m)
    else:
        expected = size + (math.log(size) + m) / m
        assert norm(twice) == pytest.approx(expected, rel=1e-9)
        assert norm(once) == pytest.approx(expected - size, rel=1e-9)
    # the distance from the base that the sum has in every direction
    assert (torch.linalg.svdvals(twice) >= torch.linalg.svdvals(delta) - 1e-9 * m).all()
