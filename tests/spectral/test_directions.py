"""Restraints of directions of W₀ against the published projections in dense float64, in factors and in dense form."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.spectral import LowRankUpdate, get_restraint, parse_restraint, restrain, restraint_text
from peft_prune.spectral.accumulation import accumulated, is_dense_form
from peft_prune.spectral.directions import count_above, leading_singular
from peft_prune.tuner.layer import layers_of
from tests.session.scene import MODULE, REQUESTS, adapted, resumed, session
from tests.tiny import tiny_llama

SHAPES = [(12, 30), (30, 12), (16, 16)]


def drawn(shape: tuple[int, int], rank: int, seed: int = 0) -> tuple[torch.Tensor, LowRankUpdate]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(*shape, generator=generator) @ torch.diag(torch.linspace(3, 0.1, shape[1]))
    return weight, LowRankUpdate(
        torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator)
    )


def dense_sphere(weight: torch.Tensor, delta: torch.Tensor, strength: float, ratio: float) -> torch.Tensor:
    """As the authors' code has it: U of the rows' directions, all matrices dense."""
    rows = weight.double() / (weight.double().norm(dim=1, keepdim=True) + 1e-8)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    count = int((values.flip(0).cumsum(0) / values.sum() <= ratio).sum()) + 1
    side = vectors[:, -count:]
    return delta @ (torch.eye(delta.shape[1], dtype=torch.float64) - strength * side @ side.T)


def dense_revive(weight: torch.Tensor, delta: torch.Tensor, energy: float) -> torch.Tensor:
    """In the basis of W₀: every part with a dominant output or input direction is 0."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=True)
    held = values.square().cumsum(0) / values.square().sum()
    count = int((held <= energy).sum()) + 1
    parts = left.T @ delta @ right.T
    parts[:count] = 0
    parts[:, :count] = 0
    return left @ parts @ right


DENSE = {
    "sphere": lambda weight, delta: dense_sphere(weight, delta, 0.8, 0.5),
    "sphere:0.3:0.7": lambda weight, delta: dense_sphere(weight, delta, 0.3, 0.7),
    "sphere:1": lambda weight, delta: dense_sphere(weight, delta, 1.0, 0.5),
    "revive": lambda weight, delta: dense_revive(weight, delta, 0.5),
    "revive:0.8": lambda weight, delta: dense_revive(weight, delta, 0.8),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("word", DENSE)
@pytest.mark.parametrize("rank", [3, 40], ids=["factors", "dense form"])
def test_the_filter_is_the_dense_projection(word: str, shape: tuple[int, int], rank: int) -> None:
    weight, update = drawn(shape, 3)
    for number in range(rank // 3 - 1):
        update = accumulated(update, drawn(shape, 3, number + 1)[1])
    assert is_dense_form(update) is (rank == 40)
    delta = update.dense().double()
    expected = DENSE[word](weight, delta)
    found = parse_restraint(word).filter(weight).applied(update)
    assert found.rank == update.rank and found.dtype == torch.float32
    assert is_dense_form(found) is is_dense_form(update)
    assert torch.allclose(found.dense().double(), expected, atol=1e-5 * float(delta.abs().max()))
    assert float(torch.linalg.matrix_norm(expected, 2)) <= float(torch.linalg.matrix_norm(delta, 2)) + 1e-9


@pytest.mark.parametrize("word", DENSE)
def test_acting_on_the_sum_is_acting_on_every_edit(word: str) -> None:
    weight, one = drawn((12, 30), 3)
    other = drawn((12, 30), 3, 1)[1]
    found = parse_restraint(word).filter(weight)
    parts = found.applied(one).dense() + found.applied(other).dense()
    assert torch.allclose(found.applied(one.append(other)).dense(), parts, atol=1e-5)


def test_the_leading_directions_are_those_of_the_svd_on_either_side() -> None:
    for shape in SHAPES:
        weight = drawn(shape, 1)[0].double()
        left, energies, right = leading_singular(weight)
        values = torch.linalg.svdvals(weight)
        assert torch.allclose(energies[:5].sqrt(), values[:5], rtol=1e-9)
        top = left[:, :5] * energies[:5].sqrt() @ right[:, :5].T
        u, s, v = torch.linalg.svd(weight)
        assert torch.allclose(top, u[:, :5] * s[:5] @ v[:5], atol=1e-9)
    assert (
        count_above(torch.tensor([6.0, 3.0, 1.0]), 0.6) == 2 and count_above(torch.tensor([6.0, 3.0, 1.0]), 0.59) == 1
    )


def test_words_name_them_with_their_values() -> None:
    for word in ("sphere:0.8", "sphere:0.3:0.7", "revive:0.5", "log:1.5", "log:e", "clip", "none"):
        assert restraint_text(parse_restraint(word)) == word
    assert restraint_text(get_restraint("sphere")) == "sphere:0.8"
    config = PruneEditConfig(restraint="sphere:0.3:0.7")
    assert config.restraint == "sphere:0.3:0.7" and config.restraint_function == parse_restraint("sphere:0.3:0.7")
    config = PruneEditConfig(restraint="log:1.5")
    assert (config.restraint, config.alpha) == ("log", 1.5)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("sphere:0", "strength: 0.0 must lie above 0 and at most at 1"),
        ("sphere:2", "strength: 2.0 must lie"),
        ("sphere:0.5:1", "ratio: 1.0 must lie above 0 and below 1"),
        ("revive:1", "energy: 1.0 must lie above 0 and below 1"),
        ("revive:0.1:0.2", "gives 'revive' 2 values"),
        ("sphere:x", "must have a number or e behind the colon"),
        ("clip:2", "gives 'clip' a base, which it does not have"),
    ],
)
def test_a_bad_word_is_named(word: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_restraint(word)
    with pytest.raises(ValueError, match=says):
        PruneEditConfig(restraint=word)


def test_no_function_of_singular_values_stands_for_them() -> None:
    _, update = drawn((12, 30), 3)
    with pytest.raises(ValueError, match="sphere takes directions of W₀ out of ΔW"):
        restrain(update, get_restraint("sphere"), 1.0)
    with pytest.raises(ValueError, match="revive takes directions of W₀ out of ΔW"):
        get_restraint("revive")(torch.ones(3), 0.5)


@pytest.mark.parametrize("word", ["sphere:0.6", "revive:0.4"])
def test_a_layer_restrains_merges_and_saves_by_the_filter_of_its_base(tmp_path, word: str) -> None:
    base = tiny_llama()
    before = copy.deepcopy(base.state_dict())
    config = PruneEditConfig(restraint=word, restrain_on="every", restrain_every=1, layers_to_transform=[1])
    model = get_peft_model(base, config).eval()
    ((_, layer),) = layers_of(model, "default")
    own = layer.name_in_base
    weight = before[f"{own}.weight"]
    updates = [drawn(tuple(weight.shape), 2, seed)[1].scaled(0.05) for seed in range(3)]
    for update in updates:
        model.add_edits({own: update}, edits=1)
    raw = sum(update.dense().double() for update in updates)
    expected = DENSE_OF[word.partition(":")[0]](weight, raw, float(word.partition(":")[2]))
    assert torch.allclose(layer.raw_update("default").dense().double(), raw, atol=1e-6)
    assert torch.allclose(layer.effective_update("default").dense().double(), expected, atol=1e-6)
    model.save_pretrained(str(tmp_path / "adapter"))
    merged = model.merge_and_unload().state_dict()[f"{own}.weight"]
    assert torch.allclose(merged.double(), weight.double() + expected, atol=1e-5)


DENSE_OF = {
    "sphere": lambda weight, delta, value: dense_sphere(weight, delta, value, 0.5),
    "revive": lambda weight, delta, value: dense_revive(weight, delta, value),
}


def test_undo_and_resume_recompute_the_filter_bit_for_bit(tmp_path) -> None:
    options = {"restraint": "sphere:0.6", "restrain_every": 1}
    with session(tmp_path / "edits.db", model=adapted(**options), on_failure="keep") as run:
        run.edit(REQUESTS[:3])
        run.undo(2)
        (_, layer), *_ = run.model.edited_layers()
        expected = layer.effective_update("default")
        assert run.restraints() == {MODULE: "sphere:0.6"}
    with resumed(tmp_path / "edits.db") as run:
        (_, layer), *_ = run.model.edited_layers()
        found = layer.effective_update("default")
        assert run.config.restraint == "sphere:0.6"
    assert torch.equal(found.B, expected.B) and torch.equal(found.A, expected.A)
