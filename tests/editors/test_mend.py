"""MEND: gradients against autograd, rows against single edits, training that resumes and helps."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.editors import get_editor
from peft_prune.editors.gradients import gradients
from peft_prune.editors.mend_network import Maps
from peft_prune.editors.mend_training import EditedRows
from peft_prune.editors.target_likelihood import TargetBatch, frozen, target_log_probs
from peft_prune.errors import AdapterError
from peft_prune.models.generation import greedy_answers
from peft_prune.models.mlp import mlp_output_module
from tests.talking import spaced_tokenizer
from tests.tiny import willing

SUBJECTS = ("sane ant", "tone seat", "oats", "stone", "tea", "net")
REQUESTS = [EditRequest("note sea {}", subject, target) for subject in SUBJECTS for target in ("ten", "nose")]
TEXTS = ["tan ant eat soot.", "stone tea.", "the sea eat oats"]
FAST = {"layers": (1, 2), "lr": 3e-3, "lr_lr": 1e-2, "edit_lr": 1e-1, "batch_size": 6, "rank": 8}


def module_of(model, layer: int) -> str:
    return mlp_output_module(model, layer)[0]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_pairs_add_up_to_autograds_gradient(kind: str) -> None:
    model, tokenizer = willing(kind), spaced_tokenizer()
    name, module = mlp_output_module(model, 1)
    batch = TargetBatch.build(model, tokenizer, [REQUESTS[0].text], [REQUESTS[0].target_new])
    with frozen(model):
        pairs, _ = gradients(model, batch, [name])
    x, delta, owner = pairs[name]
    (-target_log_probs(model, batch).sum()).backward()
    expected = module.weight.grad if kind == "llama" else module.weight.grad.T
    assert torch.allclose(delta.T @ x, expected, atol=1e-5) and set(owner.tolist()) == {0}


def test_a_row_with_an_update_of_its_own_equals_the_model_with_that_update_alone() -> None:
    model, tokenizer = willing("llama"), spaced_tokenizer()
    name = module_of(model, 1)
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(5, 32, generator=generator), torch.randn(5, 16, generator=generator)
    owner = torch.tensor([0, 0, 1, 1, 1])
    batch = TargetBatch.build(model, tokenizer, [r.text for r in REQUESTS[:2]], [r.target_new for r in REQUESTS[:2]])
    with torch.no_grad(), EditedRows(model, {name: (keys, values, owner)}, 2):
        found = target_log_probs(model, batch)
    weight = model.get_submodule(name).weight
    before = weight.detach().clone()
    for row in range(2):
        with torch.no_grad():
            weight.copy_(before + values[owner == row].T @ keys[owner == row])
            assert float(target_log_probs(model, batch)[row]) == pytest.approx(float(found[row]), abs=1e-4)


def test_a_new_network_hands_on_normalised_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, delta = torch.randn(50, 4, generator=generator) * 3 + 1, torch.randn(50, 3, generator=generator)
    maps = Maps(4, 3, layers=2, rank=5)
    maps.observe(x[:20], delta[:20])
    maps.observe(x[20:], delta[20:])
    keys, values = maps(x, delta, 1)
    assert torch.allclose(keys, (x - x.mean(0)) / x.std(0), atol=1e-5)
    assert torch.allclose(values, (delta - delta.mean(0)) / delta.std(0), atol=1e-5)


def test_training_that_is_interrupted_goes_on_bit_for_bit_and_lowers_the_loss(tmp_path) -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    editor = get_editor("mend", **FAST)
    options = {"progress": False, "seed": 1}
    whole = editor.train(model, tokenizer, REQUESTS, TEXTS, tmp_path / "whole", steps=40, **options)
    parts = editor.train(model, tokenizer, REQUESTS, TEXTS, tmp_path / "parts", steps=15, **options)
    parts += editor.train(model, tokenizer, REQUESTS, TEXTS, tmp_path / "parts", steps=40, **options)
    assert parts == whole
    one, two = load_file(tmp_path / "whole"), load_file(tmp_path / "parts")
    assert one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert sum(whole[-10:]) < sum(whole[:10])
    assert editor.train(model, tokenizer, REQUESTS, TEXTS, tmp_path / "whole", steps=40, **options) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def test_a_trained_network_edits_through_the_adapter(tmp_path) -> None:
    base, tokenizer = willing("gpt2"), spaced_tokenizer()
    path = tmp_path / "mend.safetensors"
    get_editor("mend", **FAST).train(base, tokenizer, REQUESTS, TEXTS, path, steps=150, progress=False)
    editor = get_editor("mend", **FAST, weights=str(path))
    model = get_peft_model(base, PruneEditConfig(layers_to_transform=[1, 2], restraint="none")).eval()
    prepared = editor.prepare(model, tokenizer)
    start = model.edit_state()
    took = 0
    for request in REQUESTS:
        edit = editor.compute(model, tokenizer, [request], prepared)
        tokens = len(tokenizer(f"{request.text} {request.target_new}")["input_ids"]) - 1
        assert edit.is_separable and all(1 <= update.rank <= tokens for update in edit.updates.values())
        model.add_edits(edit.updates)
        took += greedy_answers(model, tokenizer, [request.text], max_new_tokens=1)[0].strip() == request.target_new
        model.restore_edit_state(start)
    assert took >= 9
    both = editor.compute(model, tokenizer, REQUESTS[:2], prepared)
    alone = editor.compute(model, tokenizer, REQUESTS[:1], prepared)
    for name, update in both.without({1}).updates.items():
        assert torch.allclose(update.B @ update.A, alone.updates[name].B @ alone.updates[name].A, atol=1e-4)


def test_files_that_do_not_fit_are_named(tmp_path) -> None:
    base, tokenizer = willing("gpt2"), spaced_tokenizer()
    path = tmp_path / "mend.safetensors"
    get_editor("mend", **FAST).train(base, tokenizer, REQUESTS, TEXTS, path, steps=1, progress=False)
    with pytest.raises(ValueError, match="weights: MEND edits with a trained network"):
        get_editor("mend", **FAST).prepare(base, tokenizer)
    with pytest.raises(AdapterError, match="was trained for layers"):
        get_editor("mend", **{**FAST, "layers": (0, 1)}, weights=str(path)).prepare(base, tokenizer)
    with pytest.raises(AdapterError, match="another rank"):
        get_editor("mend", **{**FAST, "rank": 9}, weights=str(path)).prepare(base, tokenizer)
    with pytest.raises(AdapterError, match="another base"):
        get_editor("mend", **FAST, weights=str(path)).prepare(willing("gpt2", seed=3), tokenizer)
    path.write_bytes(b"nothing")
    with pytest.raises(AdapterError, match="cannot be read"):
        get_editor("mend", **FAST, weights=str(path)).prepare(base, tokenizer)


def test_training_needs_requests_texts_and_steps(tmp_path) -> None:
    base, tokenizer, editor = willing("gpt2"), spaced_tokenizer(), get_editor("mend", **FAST)
    for requests, texts, steps, name in (
        ([], TEXTS, 1, "requests"),
        (REQUESTS, [], 1, "locality"),
        (REQUESTS, TEXTS, 0, "steps"),
    ):
        with pytest.raises(ValueError, match=name):
            editor.train(base, tokenizer, requests, texts, tmp_path / "x", steps=steps, progress=False)
