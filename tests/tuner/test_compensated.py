"""The schedule "compensated" against a dense float64 run of the published recursion, and the editors' part in it."""

from __future__ import annotations

import math

import pytest
import torch
from peft import get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.editors import Earlier
from peft_prune.errors import AdapterError
from peft_prune.session.replay import JoinedKeys
from peft_prune.spectral import LowRankUpdate
from peft_prune.tuner.layer import layers_of
from tests.editors.test_spread import REQUESTS, ready
from tests.session.scene import REQUESTS as ASKED
from tests.session.scene import adapted, resumed, session
from tests.tiny import tiny_gpt2

MODULE = "transformer.h.1.mlp.c_proj"


def adapter(**config):
    values = {"restraint": "log:2", "restrain_on": "compensated", "restrain_every": 1, "layers_to_transform": [1]}
    model = get_peft_model(tiny_gpt2(), PruneEditConfig(**{**values, **config})).eval()
    ((_, layer),) = layers_of(model, "default")
    return model, layer


def drawn(layer, rank: int, seed: int) -> LowRankUpdate:
    generator = torch.Generator().manual_seed(seed)
    scale = 3 * layer.sigma_max_base() / math.sqrt(layer.out_features * layer.in_features)
    return LowRankUpdate(
        torch.randn(layer.out_features, rank, generator=generator) * scale,
        torch.randn(rank, layer.in_features, generator=generator),
    )


def restrained(matrix: torch.Tensor, m: float) -> torch.Tensor:
    """F with base 2, all values by an SVD."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    new = torch.where(s > m, torch.minimum(torch.log2(s / m) + m, s), s)
    return u * new @ v


@pytest.mark.parametrize("rank", [2, 12], ids=["factors", "beyond the shorter side"])
def test_each_update_is_restrained_by_itself_with_what_the_last_restraint_took(rank: int) -> None:
    model, layer = adapter()
    m = layer.sigma_max_base()
    acting = owed = total = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    took = 0.0
    for step in range(4):
        update = drawn(layer, rank, step)
        model.add_edits({MODULE: update}, edits=1)
        fresh = owed + update.dense().double()
        acting = acting + restrained(fresh, m)
        owed = fresh - restrained(fresh, m)
        total = total + update.dense().double()
        took += float(owed.norm())
        scale = float(total.abs().max())
        found = layer.effective_update("default").dense().double()
        assert torch.allclose(found, acting, atol=1e-5 * scale)
        assert torch.allclose(layer.raw_update("default").dense().double(), total, atol=1e-5 * scale)
        assert torch.allclose(found + owed, total, atol=1e-5 * scale)  # nothing that was asked for is lost
        held = layer.owed("default")
        assert held is not None and torch.allclose(held.dense().double(), owed, atol=1e-5 * scale)
    assert took > 0
    model.restrain()  # nothing is new: what is owed waits for the next edit
    assert torch.allclose(layer.effective_update("default").dense().double(), acting, atol=1e-5 * scale)


def test_what_a_restraint_took_acts_again_beside_the_next_edit_before_that_is_verified() -> None:
    model, layer = adapter()
    model.add_edits({MODULE: drawn(layer, 2, 0)}, edits=1)
    owed, acting = layer.owed("default").dense(), layer.effective_update("default").dense()
    update = drawn(layer, 2, 1)
    model.add_edits({MODULE: update}, edits=1, on_schedule=False)
    expected = acting + owed + update.dense()
    assert torch.allclose(layer.effective_update("default").dense(), expected, atol=1e-4)
    assert layer.owed("default") is None and model.restraint_is_pending()


def test_the_put_back_and_the_smaller_residual_are_the_published_system() -> None:
    """Δ = (R Kᵀ - E) M⁻¹ with E = (F(Δ₋) - Δ₋) M₋ of the authors' code is owed + (R - owed K) Kᵀ M⁻¹."""
    generator = torch.Generator().manual_seed(0)
    keys, residual, owed = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((9, 3), (5, 3), (5, 9)))
    before = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    before = before @ before.T + torch.eye(9, dtype=torch.float64)  # M₋ = λC + K_p K_pᵀ
    matrix = before + keys @ keys.T
    published = torch.linalg.solve(matrix, keys @ residual.T - (-owed @ before).T).T
    rows = torch.linalg.solve(matrix, keys).T
    assert torch.allclose(owed + (residual - owed @ keys) @ rows, published)


def test_an_editor_leaves_to_the_put_back_what_that_does_at_its_own_keys() -> None:
    model, tokenizer, editor, prepared = ready("llama", "memit", layers=(1,), v_num_grad_steps=3)
    plain = editor.compute(model, tokenizer, REQUESTS, prepared)
    (name,) = plain.updates
    shape = plain.updates[name].shape
    generator = torch.Generator().manual_seed(0)
    owed = LowRankUpdate(
        torch.randn(shape[0], 2, generator=generator) * 0.1, torch.randn(2, shape[1], generator=generator) * 0.1
    )
    earlier: Earlier = JoinedKeys().owing({name: owed})
    beside = editor.compute(model, tokenizer, REQUESTS, prepared, earlier)
    keys = plain.keys[name]
    expected = plain.updates[name].dense() - owed.dense() @ keys.T @ plain.updates[name].A
    assert torch.allclose(beside.updates[name].dense(), expected, atol=1e-5 * float(expected.abs().max()))


def test_undo_and_resume_give_the_recursion_of_what_stands(tmp_path) -> None:
    options = {"restraint": "log:2", "restrain_on": "compensated", "restrain_every": 1}
    with session(tmp_path / "edits.db", model=adapted(**options), on_failure="keep") as run:
        run.edit(ASKED[:4])
        run.undo(2)
        (_, layer), *_ = run.model.edited_layers()
        expected, owed = layer.effective_update("default").dense(), layer.owed("default")
    with resumed(tmp_path / "edits.db", on_failure="keep") as run:
        (_, layer), *_ = run.model.edited_layers()
        assert torch.equal(layer.effective_update("default").dense(), expected)
        again = layer.owed("default")
        assert (again is None) is (owed is None) and (owed is None or torch.equal(again.dense(), owed.dense()))


def test_it_saves_what_acts_and_is_not_consolidated(tmp_path) -> None:
    model, layer = adapter()
    model.add_edits({MODULE: drawn(layer, 2, 0)}, edits=1)
    model.add_edits({MODULE: drawn(layer, 2, 1)}, edits=1, on_schedule=False)
    leaving = layer.leaving_update("default").dense()
    model.save_pretrained(str(tmp_path))
    assert torch.allclose(layer.effective_update("default").dense(), leaving, atol=1e-5)
    with pytest.raises(AdapterError, match="under restrain_on='compensated' what acts is not F of the raw factors"):
        layer.set_consolidated("default", drawn(layer, 1, 2))
    with pytest.raises(ValueError, match="consolidate: 'save' starts from F of the raw factors"):
        PruneEditConfig(restrain_on="compensated", consolidate="save")
