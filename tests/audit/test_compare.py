"""What an audit says of a changed matrix, against dense float64 computations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from peft_prune.audit import audit

from .scene import GPT2, LLAMA, base, edited, low_rank, rewrite, weights


def dense(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    one, other = before.double(), after.double()
    old, new, delta = (torch.linalg.svdvals(m) for m in (one, other, other - one))
    shares = delta / delta.sum()
    return {
        "delta_spectral_norm": float(delta[0]),
        "delta_frobenius_norm": float((other - one).norm()),
        "sigma_max_base": float(old[0]),
        "frobenius_norm_base": float(one.norm()),
        "condition_number_base": float(old[0] / old[-1]),
        "condition_number": float(new[0] / new[-1]),
        "effective_rank": math.exp(-float((shares * shares.clamp(min=1e-300).log()).sum())),
        "elements_changed": float((one != other).double().mean()),
    }


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [("llama", LLAMA, (16, 32)), ("gpt2", GPT2, (64, 16)), ("llama", "model.embed_tokens.weight", (50, 16))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_figures_equal_dense_ones(tmp_path: Path, kind: str, name: str, shape, dtype: torch.dtype) -> None:
    before = base(kind, tmp_path / "base", dtype)
    after = edited(before, tmp_path / "edited", {name: low_rank(shape, 3)})
    (found,) = audit(before, [after]).series
    assert list(found.matrices) == [name] and not found.others
    assert found.unchanged == len(weights(before)) - 1
    one, expected = found.matrices[name], dense(weights(before)[name], weights(after)[name])
    for field, value in expected.items():
        assert getattr(one, field) == pytest.approx(value, rel=1e-3 if "rank" in field else 1e-6), field
    assert one.growth == pytest.approx(expected["condition_number"] / expected["condition_number_base"])
    values = torch.linalg.svdvals(weights(after)[name].double() - weights(before)[name].double())
    assert torch.allclose(torch.tensor(one.singular_values[:3]), values[:3].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("rounded_first", [False, True])
def test_the_rank_above_rounding_is_that_of_the_edits(tmp_path, dtype, rank: int, rounded_first: bool) -> None:
    before = base("llama", tmp_path / "base", dtype)
    change = {LLAMA: low_rank((16, 32), rank)}
    after = edited(before, tmp_path / "edited", change, rounded_first=rounded_first)
    one = audit(before, [after]).series[0].matrices[LLAMA]
    assert one.rank == rank
    values = torch.linalg.svdvals(weights(after)[LLAMA].double() - weights(before)[LLAMA].double())
    energies = values.square().cumsum(0) / values.square().sum()
    assert one.rank_99 == int((energies < 0.99).sum()) + 1 <= rank


def test_a_dense_change_has_full_rank(tmp_path: Path) -> None:
    before = base("llama", tmp_path / "base", torch.bfloat16)
    after = edited(before, tmp_path / "edited", {LLAMA: low_rank((16, 32), 16)})
    one = audit(before, [after]).series[0].matrices[LLAMA]
    assert one.rank == 16 and one.effective_rank > 8


def test_a_checkpoint_saved_in_another_dtype_has_not_changed(tmp_path: Path) -> None:
    before = base("llama", tmp_path / "base")
    narrow = tmp_path / "narrow"
    base("llama", narrow, torch.float16)
    assert not audit(before, [narrow]).changed
    wide = base("llama", tmp_path / "wide", torch.float16)
    rewrite(wide, {name: tensor.float() for name, tensor in weights(wide).items()})
    assert not audit(narrow, [wide]).changed


def test_vectors_and_norms_are_told_apart_from_matrices(tmp_path: Path) -> None:
    before = base("gpt2", tmp_path / "base")
    change = torch.linspace(-1, 1, 16)
    after = edited(before, tmp_path / "edited", {"transformer.h.0.mlp.c_proj.bias": change})
    (found,) = audit(before, [after]).series
    assert not found.matrices
    one = found.others["transformer.h.0.mlp.c_proj.bias"]
    assert one.delta_norm == pytest.approx(float(change.norm()), rel=1e-5)
    assert one.base_norm == pytest.approx(float(weights(before)["transformer.h.0.mlp.c_proj.bias"].norm()), abs=1e-6)


def test_a_series_tells_the_growth_in_the_order_in_which_it_was_given(tmp_path: Path) -> None:
    before = base("llama", tmp_path / "base")
    scales = (0.5, 8.0, 2.0)
    steps = [
        edited(before, tmp_path / f"step{i}", {LLAMA: low_rank((16, 32), 2, scale)}) for i, scale in enumerate(scales)
    ]
    found = audit(before, [*steps, before])
    expected = [dense(weights(before)[LLAMA], weights(step)[LLAMA]) for step in steps]
    assert found.growth(LLAMA)[:3] == pytest.approx(
        [one["condition_number"] / one["condition_number_base"] for one in expected], rel=1e-4
    )
    assert found.growth(LLAMA)[3] == 1.0 and not found.series[3].matrices
    assert [one.name for one in found.series] == ["step0", "step1", "step2", "base"]


def test_only_some_tensors_are_compared_where_that_is_asked_for(tmp_path: Path) -> None:
    before = base("llama", tmp_path / "base")
    other = "model.layers.2.mlp.down_proj.weight"
    after = edited(before, tmp_path / "edited", dict.fromkeys((LLAMA, other), low_rank((16, 32), 1)))
    seen: list[str] = []
    found = audit(before, [after], only=r"layers\.2", progress=lambda name, done, total: seen.append(name))
    assert found.changed == [other] and all("layers.2" in name for name in seen) and seen
    with pytest.raises(ValueError, match=r"only: 'nowhere' matches none of \d+ tensors"):
        audit(before, [after], only="nowhere")
    with pytest.raises(ValueError, match=r"only: '\(' is no regular expression"):
        audit(before, [after], only="(")


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    before = base("llama", tmp_path / "base")
    after = base("llama", tmp_path / "edited")
    tensors = weights(after)
    tensors[LLAMA][0, 0] = math.nan
    rewrite(after, tensors)
    with pytest.raises(ValueError, match=f"{LLAMA}: strip: 1 of 512 elements are NaN or Inf"):
        audit(before, [after])
