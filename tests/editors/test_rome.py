from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from peft_prune import EditFailedError, EditRequest
from peft_prune.editors import (
    ROME,
    ROMEHyperparameters,
    SecondMoments,
    collect_second_moments,
    editor_names,
    get_editor,
)
from peft_prune.editors.rome import ADAPTED, PUBLISHED
from peft_prune.editors.second_moment import regularized_cholesky
from peft_prune.editors.tokens import tokenize_prompts
from peft_prune.editors.values import optimize_values
from peft_prune.models.mlp import mlp_output_module
from tests.talking import WORDS, spaced_tokenizer
from tests.tiny import tiny_gpt2, willing

REQUEST = EditRequest("note sea {}", "sane ant", "ten")
TEXTS = [" ".join(WORDS[(7 * i + 3 * j) % len(WORDS)] for j in range(12)) for i in range(40)]
EASY = ROMEHyperparameters(layers=(1,), v_num_grad_steps=40, clamp_norm_factor=20.0, context_lengths=((4, 3),))


def prepared(kind: str, hyperparameters: ROMEHyperparameters = EASY):
    model, tokenizer = willing(kind), spaced_tokenizer()
    editor = ROME(hyperparameters)
    name, module = mlp_output_module(model, 1)
    moments = collect_second_moments(model, tokenizer, TEXTS, [name], progress=False)
    return model, tokenizer, editor, editor.prepare(model, tokenizer, moments), name, module


@pytest.mark.parametrize("average_key", [True, False], ids=["average", "bare"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_update_is_the_textbook_formula_in_float64(kind: str, average_key: bool) -> None:
    model, tokenizer, editor, ready, name, module = prepared(kind, replace(EASY, average_key=average_key))
    update = editor.compute(model, tokenizer, [REQUEST], ready).updates[name]
    delta = optimize_values(
        model, tokenizer, [REQUEST], ready.contexts, 1, editor.hyperparameters.value_settings("mlp")
    )[0].delta
    keys = []
    for context in ready.contexts:
        template = f"{context} {REQUEST.prompt}" if context else REQUEST.prompt
        (prompt,) = tokenize_prompts(tokenizer, [template], REQUEST.subject)
        handle = module.register_forward_pre_hook(
            lambda module, args, p=prompt: keys.append(args[0][0, p.subject_last].detach().double())
        )
        model(torch.tensor([prompt.ids]))
        handle.remove()
    moment = ready.statistics.moments[name].double()
    u = torch.linalg.solve(moment, torch.stack(keys).mean(0) if average_key else keys[0])
    expected = torch.outer(delta.double(), u) / (keys[0] @ u)
    assert update.rank == 1
    assert torch.allclose(update.dense().double(), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_after_the_edit_the_target_is_the_greedy_answer(kind: str) -> None:
    model, tokenizer, editor, ready, name, module = prepared(kind)
    edit = editor.compute(model, tokenizer, [REQUEST], ready)
    ids = torch.tensor([tokenizer(REQUEST.text)["input_ids"]])
    target = tokenizer(" ten")["input_ids"][0]
    before = model(ids).logits[0, -1].softmax(0)[target]
    delta = edit.updates[name].dense()
    module.weight.data += delta.T if kind == "gpt2" else delta
    after = model(ids).logits[0, -1].softmax(0)
    assert after.argmax() == target and after[target] > 2 * before
    assert edit.probability[0] > edit.probability_before[0]


def test_the_second_moment_is_that_of_every_token_and_of_no_padding() -> None:
    model, tokenizer = willing("llama"), spaced_tokenizer()
    names = [mlp_output_module(model, layer)[0] for layer in (0, 2)]
    texts = [*TEXTS, "ant", "tea ten"]
    found = collect_second_moments(model, tokenizer, iter(texts), names, batch_size=7, progress=False)
    for name in names:
        keys: list[torch.Tensor] = []
        handle = model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, keys=keys: keys.append(args[0][0].detach())
        )
        for text in texts:
            model(torch.tensor([tokenizer(text)["input_ids"]]))
        handle.remove()
        rows = torch.cat(keys).double()
        assert found.tokens == len(rows)
        assert torch.allclose(found.moments[name].double(), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)


def test_statistics_come_back_from_their_file_and_are_refused_for_another_base(tmp_path) -> None:
    from peft_prune import AdapterError
    from peft_prune.models.fingerprint import base_fingerprint

    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    name, _ = mlp_output_module(model, 1)
    moments = collect_second_moments(model, tokenizer, TEXTS, [name], progress=False)
    moments.save(tmp_path / "moments.safetensors")
    loaded = SecondMoments.load(tmp_path / "moments.safetensors", base=base_fingerprint(model))
    assert loaded.tokens == moments.tokens and torch.equal(loaded.moments[name], moments.moments[name])
    assert [path.name for path in tmp_path.iterdir()] == ["moments.safetensors"]
    with pytest.raises(AdapterError, match="other base weights"):
        SecondMoments.load(tmp_path / "moments.safetensors", base=base_fingerprint(tiny_gpt2(seed=5)))
    (tmp_path / "broken.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(AdapterError, match="cannot be read"):
        SecondMoments.load(tmp_path / "broken.safetensors")


def solved(moment: torch.Tensor, key: torch.Tensor, shrinkage: float = 0.0) -> torch.Tensor:
    return torch.cholesky_solve(key.double()[:, None], regularized_cholesky(moment, shrinkage)[0])[:, 0]


def test_a_singular_moment_is_regularised_and_says_by_how_much() -> None:
    rows = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    moment, key = rows.T @ rows / 5, rows[0]
    with pytest.warns(UserWarning, match="of its mean diagonal was added"):
        found = solved(moment, key)
    assert torch.isfinite(found).all() and float(found @ key.double()) > 0


def test_shrinkage_is_added_to_the_diagonal() -> None:
    rows = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    moment, key = rows.T @ rows / 50, rows[0]
    ridge = 0.3 * moment.double().diagonal().mean() * torch.eye(20)
    expected = torch.linalg.solve(moment.double() + ridge, key.double())
    assert torch.allclose(solved(moment, key, 0.3), expected, rtol=1e-9)


def test_contexts_are_deterministic_and_leave_the_random_state_alone() -> None:
    from peft_prune.editors import generate_contexts

    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    state = torch.random.get_rng_state()
    first = generate_contexts(model, tokenizer, ((5, 4), (10, 4)), seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == generate_contexts(model, tokenizer, ((5, 4), (10, 4)), seed=1)
    assert first != generate_contexts(model, tokenizer, ((5, 4), (10, 4)), seed=2)
    assert len(first) == 9 and first[0] == "" and not any("{" in context for context in first)


def test_an_update_that_is_not_finite_is_an_error_that_names_the_subject() -> None:
    model, tokenizer, editor, ready, _, _ = prepared("gpt2")
    model.transformer.ln_f.weight.data[0] = math.nan
    with pytest.raises(EditFailedError, match="'sane ant'"):
        editor.compute(model, tokenizer, [REQUEST], ready)


def test_the_published_layer_is_found_by_the_rule_for_models_without_a_preset() -> None:
    assert get_editor("rome").layers(tiny_gpt2()) == (1,)
    assert "rome" in editor_names()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (1, 2)}, "layers: .* must be one layer"),
        ({"stop": "never"}, "stop: 'never' is not one of"),
        ({"stop_probability": 1.5}, "stop_probability: 1.5"),
        ({"v_lr": 0}, "v_lr: 0 must be above 0"),
        ({"speed": 1}, "speed: is no hyperparameter of rome"),
    ],
)
def test_hyperparameters_that_do_not_fit_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_editor("rome", **settings)


def test_second_moments_are_asked_for_where_they_are_missing() -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    with pytest.raises(ValueError, match=r"second moment of transformer\.h\.1\.mlp\.c_proj"):
        ROME(EASY).prepare(model, tokenizer)


def test_defaults_are_published_ones_until_a_model_that_nothing_was_published_for_is_given() -> None:
    published = get_editor("rome").hyperparameters
    assert (published.v_lr, published.v_num_grad_steps, published.average_key) == (0.5, 20, True)
    model = willing("gpt2")
    automatic = get_editor("rome", model=model, v_lr=0.3).hyperparameters
    changed = {f.name for f in fields(published) if getattr(published, f.name) != getattr(automatic, f.name)}
    assert automatic.v_lr == 0.3
    assert changed == set(ADAPTED) | {"v_lr"}
    assert replace(automatic, v_lr=0.5) == ROMEHyperparameters(**ADAPTED)


def test_the_published_stopping_rule_is_one_setting_away() -> None:
    published = replace(ROMEHyperparameters(), stop="loss", second_try=False)
    assert get_editor("rome", **PUBLISHED).hyperparameters == published
    assert get_editor("rome", published=True).hyperparameters == published
