"""What an audit says of a changed matrix, against dense float64 computations."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch

from peft_prune.audit import audit
from peft_prune.reporting import audit_report, render

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
    assert [Path(one.given).name for one in found.series] == ["step0", "step1", "step2", "base"]


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


def test_weights_that_are_not_finite_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    before = base("llama", tmp_path / "base")
    after = edited(before, tmp_path / "edited", {LLAMA: low_rank((16, 32), 1)})
    tensors, norm = weights(after), "model.norm.weight"
    tensors["model.layers.0.mlp.down_proj.weight"][0, :3] = math.nan
    tensors[norm][1] = math.inf
    rewrite(after, tensors)
    found = audit(before, [after]).series[0]
    assert found.not_finite == {"model.layers.0.mlp.down_proj.weight": (0, 3), norm: (0, 1)}
    assert list(found.matrices) == [LLAMA] and not found.others
    report = audit_report(audit(before, [after]))
    assert (report.verdict, report.level) == ("Weights are not finite", "passed")
    assert "2 tensors hold NaN or Inf" in " ".join(report.summary)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("edits", [1, 5, 20])
def test_many_edits_in_a_row_are_counted_through_as_many_roundings(tmp_path: Path, dtype, edits: int) -> None:
    generator = torch.Generator().manual_seed(edits)
    weight = (0.05 * torch.randn(96, 200, generator=generator)).to(dtype)
    before = rewrite_only(tmp_path / "base", weight)
    for _ in range(edits):
        update = torch.randn(96, 1, generator=generator) @ torch.randn(1, 200, generator=generator)
        weight = (weight.float() + 0.02 * update).to(dtype)
    after = rewrite_only(tmp_path / "edited", weight)
    assert audit(before, [after]).series[0].matrices["w"].rank == edits


def test_a_dense_change_is_not_taken_for_rounding_whatever_its_dtype(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(96, 200, generator=generator)
    before = rewrite_only(tmp_path / "base", weight.bfloat16())
    change = 0.01 * torch.randn(96, 200, generator=generator)
    after = rewrite_only(tmp_path / "edited", (weight.bfloat16().float() + change).bfloat16())
    assert audit(before, [after]).series[0].matrices["w"].rank == 96


def rewrite_only(folder: Path, weight: torch.Tensor) -> Path:
    folder.mkdir()
    return rewrite(folder, {"w": weight})


def test_a_checkpoint_stored_more_finely_than_its_base_has_not_changed_but_for_its_edit(tmp_path: Path) -> None:
    fine = base("llama", tmp_path / "fine")
    coarse = base("llama", tmp_path / "coarse", torch.bfloat16)
    assert not audit(coarse, [fine]).changed and not audit(coarse, [fine]).series[0].others
    after = edited(fine, tmp_path / "edited", {LLAMA: low_rank((16, 32), 1)})
    found = audit(coarse, [after]).series[0]
    assert list(found.matrices) == [LLAMA] and found.matrices[LLAMA].rank == 1


def test_elements_that_were_only_rounded_do_not_count_as_changed(tmp_path: Path) -> None:
    before = base("llama", tmp_path / "base")
    tensors = {name: tensor.bfloat16() for name, tensor in weights(before).items()}
    tensors[LLAMA][3] += 1.0
    after = rewrite(base("llama", tmp_path / "edited"), tensors)
    assert audit(before, [after]).series[0].matrices[LLAMA].elements_changed == pytest.approx(1 / 16)


def test_a_singular_base_has_no_growth_and_a_zero_one_no_relative_size(tmp_path: Path) -> None:
    singular = torch.randn(16, 1) @ torch.randn(1, 32)
    for place, weight in enumerate((singular, torch.zeros(16, 32))):
        before = rewrite_only(tmp_path / f"base{place}", weight)
        after = rewrite_only(tmp_path / f"edited{place}", weight + torch.randn(16, 32))
        found = audit(before, [after])
        one = found.series[0].matrices["w"]
        assert math.isnan(one.growth) and found.series[0].worst is None
        assert math.isinf(one.relative_norm) == (place == 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            text = render(audit_report(found, max_growth=2.0))
        assert "was singular before" in text and "Within the limits" in text


def test_a_series_compares_what_any_of_its_checkpoints_has(tmp_path: Path) -> None:
    before = base("gpt2", tmp_path / "base")
    resized = base("gpt2", tmp_path / "resized")
    name = "transformer.wte.weight"
    tensors = weights(resized)
    rewrite(resized, {**tensors, name: torch.cat([tensors[name], torch.zeros(2, 16)])})
    after = edited(before, tmp_path / "edited", {name: low_rank((50, 16), 1)})
    found = audit(before, [resized, after])
    assert list(found.series[1].matrices) == [name] and list(found.series[0].reshaped) == [name]


def test_what_differs_beside_matrices_is_said_in_the_headline(tmp_path: Path) -> None:
    before = base("gpt2", tmp_path / "base")
    after = edited(before, tmp_path / "edited", {"transformer.ln_f.weight": torch.ones(16)})
    report = audit_report(audit(before, [after]))
    assert report.verdict != "Nothing has changed"
    assert any("1 tensor that is no matrix differs from the base" in sentence for sentence in report.summary)
    tensors, name = weights(before), "transformer.wte.weight"
    resized = rewrite(base("gpt2", tmp_path / "resized"), {**tensors, name: tensors[name][:-1]})
    report = audit_report(audit(before, [resized]))
    assert report.verdict != "Nothing has changed"
    assert any("1 tensor of another shape could not be compared" in sentence for sentence in report.summary)


def test_a_change_within_rounding_is_called_one(tmp_path: Path) -> None:
    before = base("llama", tmp_path / "base", torch.bfloat16)
    tensors = weights(before)
    tensors[LLAMA][0, 0] *= 1.01
    after = rewrite(base("llama", tmp_path / "edited", torch.bfloat16), tensors)
    found = audit(before, [after])
    assert found.series[0].matrices[LLAMA].rank == 0
    assert "In it nothing of the change stands out from rounding." in audit_report(found).summary
