"""MEMIT, EMMET and AlphaEdit: the dense textbook update by layers, batches that take, a history that protects."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.editors import Editor, collect_second_moments, get_editor
from peft_prune.editors.keys import compute_keys
from peft_prune.editors.tokens import tokenize_prompts
from peft_prune.editors.values import optimize_values
from peft_prune.models.decoder import decoder_blocks
from peft_prune.models.mlp import mlp_output_module
from peft_prune.session import EditSession
from tests.editors.test_decoders import answers_so_far
from tests.editors.test_rome import TEXTS
from tests.talking import spaced_tokenizer
from tests.tiny import willing

REQUESTS = [EditRequest("note sea {}", subject, "ten") for subject in ("sane ant", "tone seat", "oats")]
VALUES = {
    "v_num_grad_steps": 40, "v_lr": 0.3, "clamp_norm_factor": 20.0, "context_lengths": ((4, 2),), "v_weight_decay": 0.0,
}  # fmt: skip
KINDS = {
    "memit": {"mom2_update_weight": 5.0, "mom2_shrinkage": 1e-3},
    "emmet": {"mom2_update_weight": 3.0, "mom2_shrinkage": 1e-3, "ridge": 0.1},
    "alphaedit": {"nullspace_energy": 0.3},
}


def ready(kind: str, name: str, layers: tuple[int, ...] = (0, 1), **more) -> tuple:
    model, tokenizer = willing(kind), spaced_tokenizer()
    editor = get_editor(name, layers=layers, **{**VALUES, **KINDS[name], **more})
    moments = collect_second_moments(model, tokenizer, TEXTS, editor.modules(model), progress=False)
    return model, tokenizer, editor, editor.prepare(model, tokenizer, moments)


def dense_rows(editor: Editor, moment: torch.Tensor, keys: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    """Rows of the update for keys (in, n), by the textbook formula, all matrices dense."""
    own, identity = editor.hyperparameters, torch.eye(len(moment), dtype=torch.float64)
    if editor.name == "alphaedit":
        values, vectors = torch.linalg.eigh(moment)
        values = values.clamp(min=0)
        kept = values < values[int((values.cumsum(0) / values.sum() <= own.nullspace_energy).sum())]
        projection = vectors[:, kept] @ vectors[:, kept].T
        matrix = (
            projection @ (keys @ keys.T + earlier @ earlier.T) + own.relative_L2 * float(values[kept].sum()) * identity
        )
        return torch.linalg.solve(matrix, projection @ keys).T
    moment = moment + own.mom2_shrinkage * moment.diagonal().mean() * identity
    if editor.name == "memit":
        matrix = own.mom2_update_weight * moment + keys @ keys.T + earlier @ earlier.T
        return torch.linalg.solve(matrix, keys).T
    inverse = torch.linalg.inv(own.mom2_update_weight * moment)
    inner = keys.T @ inverse @ keys + own.ridge * torch.eye(keys.shape[1], dtype=torch.float64)
    return torch.linalg.solve(inner, keys.T @ inverse)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("history", [False, True])
def test_the_update_is_the_textbook_formula_layer_by_layer(kind: str, name: str, history: bool) -> None:
    if name == "emmet" and history:
        pytest.skip("EMMET keeps no history")
    model, tokenizer, editor, prepared = ready(kind, name, **({} if name == "emmet" else {"history": history}))
    modules = editor.modules(model)
    generator = torch.Generator().manual_seed(3)
    width = prepared.statistics.moments[modules[0]].shape[0]
    earlier = {module: torch.randn(4, width, generator=generator) for module in modules}
    edit = editor.compute(model, tokenizer, REQUESTS, prepared, earlier)

    weights = editor._context_weights()
    assert sum(weights) == pytest.approx(1) and weights[0] == pytest.approx(0.5)
    values = optimize_values(
        model, tokenizer, REQUESTS, prepared.contexts, 1, editor.hyperparameters.value_settings("block")
    )
    dense = copy.deepcopy(model)
    for place, module in enumerate(modules):
        keys = compute_keys(dense, tokenizer, REQUESTS, prepared.contexts, place, weights)
        K = torch.stack([key.mean for key in keys]).double().T
        block = decoder_blocks(dense)[1][1]
        missing = []
        for request, value in zip(REQUESTS, values, strict=True):
            (prompt,) = tokenize_prompts(tokenizer, [request.prompt], request.subject)
            caught = []
            handle = block.register_forward_hook(
                lambda m, a, out, caught=caught: caught.append(out[0] if isinstance(out, tuple) else out)
            )
            with torch.no_grad():
                dense(torch.tensor([prompt.ids]))
            handle.remove()
            missing.append(value.output + value.delta - caught[0][0, prompt.subject_last])
        R = torch.stack(missing, dim=1).double() / (len(modules) - place)
        past = earlier[module].double().T if history else torch.zeros(width, 0, dtype=torch.float64)
        expected = R @ dense_rows(editor, prepared.statistics.moments[module].double(), K, past)
        found = edit.updates[module]
        error = (found.B.double() @ found.A.double() - expected).norm() / expected.norm()
        assert float(error) < 1e-4
        assert torch.allclose(edit.keys[module].double().T, K, atol=1e-5)
        weight = dense.get_submodule(module).weight
        with torch.no_grad():
            weight += (expected.T if kind == "gpt2" else expected).float()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_batch_takes_and_goes_again(kind: str, name: str) -> None:
    base, tokenizer, editor, prepared = ready(kind, name)
    ids = torch.arange(9)[None]
    before = base(ids).logits
    model = get_peft_model(base, PruneEditConfig(layers_to_transform=[0, 1], restraint="none")).eval()
    session = EditSession(model, tokenizer, editor, statistics=prepared.statistics, monitor=False, on_failure="keep")
    outcomes = session.edit(REQUESTS, batch_size=3)
    assert all(map(answers_so_far, outcomes)), [outcome.reason for outcome in outcomes]
    assert all(layer.rank("default") == 3 for _, layer in model.edited_layers())
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, before)


def test_history_keeps_what_earlier_edits_gave() -> None:
    changes = {}
    for history in (False, True):
        base, tokenizer, editor, prepared = ready("gpt2", "memit", layers=(1,), history=history)
        model = get_peft_model(base, PruneEditConfig(layers_to_transform=[1], restraint="none")).eval()
        first = editor.compute(model, tokenizer, REQUESTS[:1], prepared)
        second = editor.compute(model, tokenizer, REQUESTS[1:2], prepared, first.keys)
        (update,), (key,) = second.updates.values(), first.keys.values()
        changes[history] = float((update.B @ (update.A @ key[0])).norm() / (update.B @ update.A).norm())
    assert changes[True] < 0.8 * changes[False]


def test_editors_say_what_they_need() -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    with pytest.raises(ValueError, match=r"MEMIT needs the second moment of transformer.h.1.mlp.c_proj"):
        get_editor("memit", layers=(1,)).prepare(model, tokenizer)
    for name, field, value in (
        ("memit", "mom2_update_weight", 0.0), ("emmet", "ridge", -1.0), ("alphaedit", "L2", -1.0),
        ("alphaedit", "nullspace_energy", 1.0), ("memit", "autocast", "int4"), ("memit", "layers", (2, 1)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=field):
            get_editor(name, **{field: value})


def test_layers_follow_a_share_of_the_depth() -> None:
    assert get_editor("memit").default_layers(48) == (13, 14, 15, 16, 17)
    for name in ("memit", "emmet", "alphaedit"):
        own, published = (get_editor(name, model=willing("gpt2"), published=yes) for yes in (False, True))
        assert [own.default_layers(depth) for depth in (1, 3, 6, 18, 30, 32)] == [
            *((0,), (0, 1), (0, 1), (2, 3), (3, 4, 5), (3, 4, 5))
        ]
        assert published.default_layers(30) == (9, 10, 11)
    assert get_editor("rome", model=willing("gpt2")).default_layers(30) == (5,)
    assert get_editor("rome").default_layers(48) == (17,)
    assert get_editor("memit", last_at=0.5).default_layers(30) == (13, 14, 15)
    with pytest.raises(ValueError, match=r"last_at: 1\.5 must be between 0 and 1"):
        get_editor("memit", last_at=1.5)
    assert get_editor("memit").layers(willing("gpt2")) == (0, 1)
    assert mlp_output_module(willing("gpt2"), 1)[0] == get_editor("memit").modules(willing("gpt2"))[1]


def test_an_editor_takes_its_hyperparameters_by_name() -> None:
    from peft_prune.editors import MEMIT

    editor = MEMIT(layers=[13, 14, 15], v_lr=0.1)
    assert editor.hyperparameters.layers == (13, 14, 15) and editor.hyperparameters.v_lr == 0.1
    assert editor.hyperparameters == get_editor("memit", layers=(13, 14, 15), v_lr=0.1).hyperparameters
    assert MEMIT(editor.hyperparameters, v_lr=0.2).hyperparameters.layers == (13, 14, 15)
    with pytest.raises(ValueError, match="speed: is no hyperparameter of memit"):
        MEMIT(speed=1)
    with pytest.raises(ValueError, match="v_lr: 'fast' must be a number"):
        MEMIT(v_lr="fast")


def test_a_ridge_is_for_batches_and_a_single_key_gets_none() -> None:
    """emmet_main.py of the authors adds it where there is more than one key."""
    rows = {}
    for ridge in (0.0, 50.0):
        model, tokenizer, editor, prepared = ready("gpt2", "emmet", layers=(1,), ridge=ridge, v_num_grad_steps=2)
        for count in (1, 2):
            (update,) = editor.compute(model, tokenizer, REQUESTS[:count], prepared).updates.values()
            rows[ridge, count] = update.A
    assert torch.equal(rows[0.0, 1], rows[50.0, 1])
    assert float(rows[50.0, 2].norm()) < 0.9 * float(rows[0.0, 2].norm())
