"""Adapters made of a difference: they give the edited model back, and can be restrained."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from peft_prune.audit import CheckpointAudit, Rule, audit, extract
from peft_prune.cli import main
from peft_prune.errors import CheckpointError
from peft_prune.models.fingerprint import base_fingerprint, modules_in, same_base
from peft_prune.spectral import LogRestraint

from .scene import GPT2, LLAMA, base, edited, low_rank, rewrite, weights

IDS = torch.arange(12)[None]
SHAPES = {"llama": (16, 32), "gpt2": (64, 16)}
NAMES = {"llama": LLAMA, "gpt2": GPT2}


@pytest.fixture(params=["llama", "gpt2"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, str]:
    kind = request.param
    before = base(kind, tmp_path / "base")
    edited(before, tmp_path / "edited", {NAMES[kind]: low_rank(SHAPES[kind], 4, 2.0)})
    return before, tmp_path / "edited", NAMES[kind]


def look(before: Path, after: Path) -> CheckpointAudit:
    return audit(before, [after]).series[0]


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), strict_base=True)
    with torch.no_grad():
        return model(IDS).logits


def test_the_base_with_the_adapter_is_the_edited_model(scene, tmp_path: Path) -> None:
    before, after, name = scene
    made = extract(before, after, look(before, after), tmp_path / "adapter")
    module = name.removesuffix(".weight")
    assert made.ranks == {module: 4} and made.errors[module] < 1e-5 and made.error < 1e-5
    assert torch.allclose(logits(before, tmp_path / "adapter"), logits(after), atol=1e-4)
    assert not torch.allclose(logits(before), logits(after), atol=1e-2)


def test_the_adapter_is_the_best_of_its_rank_and_states_its_error(scene, tmp_path: Path) -> None:
    before, after, name = scene
    made = extract(before, after, look(before, after), tmp_path / "adapter", rule=Rule(rank=2))
    delta = weights(after)[name].double() - weights(before)[name].double()
    values = torch.linalg.svdvals(delta)
    optimal = float(values[2:].norm() / values.norm())
    (error,) = made.errors.values()
    assert error == pytest.approx(optimal, rel=1e-4) and made.error == pytest.approx(optimal, rel=1e-4)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(before), str(tmp_path / "adapter"))
    ((_, layer),) = model.edited_layers()
    update = layer.effective_update("default").dense().double()
    update = update.T if name == GPT2 else update
    assert float((delta - update).norm() / delta.norm()) == pytest.approx(optimal, rel=1e-4)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_an_energy_picks_the_fewest_directions(scene, tmp_path: Path, energy: float) -> None:
    before, after, name = scene
    made = extract(before, after, look(before, after), tmp_path / "adapter", rule=Rule(energy=energy))
    values = torch.linalg.svdvals(weights(after)[name].double() - weights(before)[name].double())
    shares = values.square().cumsum(0) / values.square().sum()
    (rank,) = made.ranks.values()
    assert rank == int((shares < energy).sum()) + 1
    limited = extract(before, after, look(before, after), tmp_path / "limited", rule=Rule(energy=energy, rank=1))
    assert list(limited.ranks.values()) == [1]


def test_the_restraint_acts_on_the_extracted_adapter(scene, tmp_path: Path) -> None:
    before, after, name = scene
    extract(before, after, look(before, after), tmp_path / "adapter")
    arguments = ["restrain", tmp_path / "adapter", "--model", before, "--restraint", "log", "--alpha", 2]
    assert main([str(a) for a in [*arguments, "--out", tmp_path / "restrained", "--json"]]) == 0
    weight, delta = weights(before)[name].double(), weights(after)[name].double() - weights(before)[name].double()
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    expected = LogRestraint(2.0)(values, float(torch.linalg.svdvals(weight)[0]))
    model = AutoModelForCausalLM.from_pretrained(before).eval()
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        parameters[name].copy_(weight + left @ torch.diag(expected) @ right)
        reference = model(IDS).logits
    assert torch.allclose(logits(before, tmp_path / "restrained"), reference, atol=1e-3)
    assert float(expected[0]) < 0.9 * float(values[0])


def test_the_file_says_what_it_was_made_for(scene, tmp_path: Path) -> None:
    before, after, _ = scene
    extract(before, after, look(before, after), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["restrained"] is False and config["edits"] == 0 and config["restraint"] == "none"
    assert config["base_model_name_or_path"] == before.name
    found = base_fingerprint(AutoModelForCausalLM.from_pretrained(before))
    assert modules_in(config["base_fingerprint"]) == modules_in(found)
    assert same_base(config["base_fingerprint"], found)
    other = AutoModelForCausalLM.from_pretrained(before)
    with torch.no_grad():
        other.get_submodule(modules_in(found)[0]).weight[0, 0] += 0.5
    assert not same_base(config["base_fingerprint"], base_fingerprint(other))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        logits(before, tmp_path / "adapter")


def test_what_an_adapter_cannot_hold_is_left_out_and_counted(tmp_path: Path) -> None:
    before = base("gpt2", tmp_path / "base")
    bias, table = "transformer.h.0.mlp.c_proj.bias", "transformer.wte.weight"
    changes = {GPT2: low_rank((64, 16), 1), bias: torch.ones(16), table: low_rank((50, 16), 1, 0.1)}
    after = edited(before, tmp_path / "edited", changes)
    made = extract(before, after, look(before, after), tmp_path / "adapter")
    assert set(made.left_out) == {bias, table}
    assert made.left_out[bias] == "it is no matrix" and "tied to lm_head.weight" in made.left_out[table]
    parts = {name: float((weights(after)[name].double() - weights(before)[name].double()).norm()) for name in changes}
    missing = (parts[bias] ** 2 + parts[table] ** 2) ** 0.5
    assert made.error == pytest.approx(missing / sum(own**2 for own in parts.values()) ** 0.5, rel=1e-4)


def test_nothing_is_written_where_nothing_can_be_extracted(tmp_path: Path) -> None:
    before = base("gpt2", tmp_path / "base")
    after = edited(before, tmp_path / "edited", {"transformer.h.0.mlp.c_proj.bias": torch.ones(16)})
    with pytest.raises(CheckpointError, match=r"nothing that an adapter can hold differs in .*: it is no matrix"):
        extract(before, after, look(before, after), tmp_path / "adapter")
    full = edited(before, tmp_path / "full", {GPT2: low_rank((64, 16), 16)})
    with pytest.raises(CheckpointError, match="factors of rank 16 would be as large as the matrix; give a"):
        extract(before, full, look(before, full), tmp_path / "adapter")
    with pytest.raises(ValueError, match="rank: 0 must be at least 1"):
        Rule(rank=0)
    with pytest.raises(ValueError, match="energy: 2 must be above 0 and at most 1"):
        Rule(energy=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(ValueError, match="mine exists"):
        extract(before, full, look(before, full), tmp_path / "mine", rule=Rule(rank=1))
    assert not (tmp_path / "adapter").exists() and (tmp_path / "mine" / "file").read_text() == "mine"


def test_more_directions_than_there_are_make_no_broken_factors(scene, tmp_path: Path) -> None:
    before, after, _ = scene
    made = extract(before, after, look(before, after), tmp_path / "adapter", rule=Rule(rank=9))
    assert list(made.ranks.values()) == [4]
    assert torch.isfinite(logits(before, tmp_path / "adapter")).all()
    (error,) = made.errors.values()
    assert 0 < error < 1e-6  # the factors are float32


def test_an_adapter_of_an_untied_checkpoint_knows_its_base(tmp_path: Path) -> None:
    before = base("gpt2", tmp_path / "base")
    tensors = weights(before)
    rewrite(before, {**tensors, "lm_head.weight": tensors["transformer.wte.weight"] + low_rank((50, 16), 1)})
    after = base("gpt2", tmp_path / "edited")
    changed = {GPT2: tensors[GPT2] + low_rank((64, 16), 2)}
    rewrite(after, {**weights(before), **changed})
    made = extract(before, after, look(before, after), tmp_path / "adapter")
    assert made.knows_base and torch.allclose(logits(before, tmp_path / "adapter"), logits(after), atol=1e-4)


def test_the_checkpoints_are_never_written_over(scene, tmp_path: Path) -> None:
    before, after, _ = scene
    found = look(before, after)
    for folder in (before, after, after / "inside", tmp_path):
        with pytest.raises(ValueError, match=r"extract: .* (is|holds|lies in) the checkpoint"):
            extract(before, after, found, folder, overwrite=True)
    assert weights(before) and weights(after)


def test_a_base_given_as_a_file_is_named_by_its_folder(scene, tmp_path: Path) -> None:
    before, after, _ = scene
    file = before / "model.safetensors"
    extract(file, after, look(file, after), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == before.name


def test_an_error_over_what_is_not_finite_or_was_not_compared_is_not_stated(scene, tmp_path: Path) -> None:
    before, after, name = scene
    tensors = weights(after)
    other = next(key for key in tensors if "norm" in key or "ln_f" in key)
    tensors[other] = tensors[other] * torch.nan
    rewrite(after, tensors)
    made = extract(before, after, look(before, after), tmp_path / "adapter")
    assert made.error is None and made.left_out == {other: "it holds NaN or Inf"}
    assert made.errors[name.removesuffix(".weight")] < 1e-5
