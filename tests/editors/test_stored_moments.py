"""Second moments are checked where they come in, and a matrix that is none ends in an error, not in a loop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_prune.editors import SecondMoments
from peft_prune.editors.second_moment import regularized_cholesky
from peft_prune.errors import AdapterError
from tests.tiny import tiny_gpt2

NAME = "transformer.h.1.mlp.c_proj"


def a_moment(width: int = 64, tokens: int = 200, dead: int = 0) -> torch.Tensor:
    keys = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0))
    keys[:, :dead] = 0
    return keys.T @ keys / tokens


def test_what_was_saved_comes_back_and_only_the_file_is_there(tmp_path: Path) -> None:
    # fewer tokens than dimensions, and inputs that are never active, are ordinary
    for moment in (a_moment(), a_moment(tokens=20), a_moment(dead=3)):
        SecondMoments({NAME: moment}, 200, None).save(tmp_path / "moments.safetensors")
        found = SecondMoments.load(tmp_path / "moments.safetensors")
        assert torch.equal(found.moments[NAME], moment) and found.tokens == 200 and found.base is None
        assert os.listdir(tmp_path) == ["moments.safetensors"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (torch.zeros_like, "must hold mean squares, which are positive"),
        (lambda c: c * float("nan"), "holds NaN or Inf"),
        (lambda c: -c, "must hold mean squares, which are positive"),
        (lambda c: c + 0.1 * torch.ones_like(c).triu(1), "is not symmetric"),
        (lambda c: c.diagonal().diag() + 9 * (1 - torch.eye(len(c))), "is not positive semidefinite"),
        (lambda c: c[:32], r"has shape \(32, 64\); a square matrix is accepted"),
        (lambda c: c.double(), "is of dtype F64; F32 is accepted"),
    ],
)
def test_what_is_no_second_moment_is_refused_by_name(tmp_path: Path, spoil, message: str) -> None:
    path = tmp_path / "moments.safetensors"
    SecondMoments({NAME: a_moment()}, 200, None).save(path)
    metadata = {"tokens": "200", "base": "", "kind": "second_moments"}
    save_file({NAME: spoil(load_file(path)[NAME]).contiguous()}, path, metadata)
    with pytest.raises(AdapterError, match=message) as refused:
        SecondMoments.load(path)
    assert str(path) in str(refused.value) and NAME in str(refused.value)


def test_a_moment_of_another_width_than_the_layers_inputs_is_refused() -> None:
    SecondMoments({NAME: a_moment(64), "of.another.model": a_moment(8)}, 200).require_fit(tiny_gpt2())
    with pytest.raises(AdapterError, match=f"{NAME} has inputs of width 64, its second moment is 16 wide"):
        SecondMoments({NAME: a_moment(16)}, 200).require_fit(tiny_gpt2())


def test_a_factorization_ends_for_every_matrix() -> None:
    factor, _ = regularized_cholesky(a_moment())
    assert torch.allclose(factor @ factor.T, a_moment().double(), atol=1e-12)
    with pytest.warns(UserWarning, match="is singular"):
        regularized_cholesky(a_moment(tokens=20))
    indefinite = a_moment() - 3 * torch.eye(64)
    for matrix in (torch.zeros(4, 4), torch.full((4, 4), float("nan")), indefinite, -a_moment()):
        with pytest.raises(ValueError, match=r"is 0|holds NaN|positive semidefinite"):
            regularized_cholesky(matrix)
