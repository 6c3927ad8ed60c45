"""Rank correlation against an independent one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from peft_prune.experiment import spearman


def test_spearman_equals_scipys_with_and_without_ties() -> None:
    generator = np.random.default_rng(0)
    for levels in (1000, 4):
        x = generator.integers(levels, size=50)
        y = x + generator.integers(levels, size=50)
        expected = spearmanr(x, y).statistic
        assert spearman(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected)


def test_spearman_has_no_value_where_one_side_does_not_vary() -> None:
    assert spearman(torch.ones(5), torch.arange(5)) is None
