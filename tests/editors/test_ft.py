"""Constrained fine-tuning: it takes, it stays within its constraint, and its gradient is the plain one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from peft import get_peft_model

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.editors import get_editor
from peft_prune.editors.target_likelihood import TargetBatch, target_log_probs
from peft_prune.errors import UnsupportedModelError
from peft_prune.models.mlp import mlp_output_module
from peft_prune.session import EditSession
from tests.talking import spaced_tokenizer
from tests.tiny import willing

REQUEST = EditRequest("note sea {}", "sane ant", "ten")
STRONG = {"norm_constraint": 0.3, "lr": 0.05, "num_steps": 60}


BY_WEIGHT = {"lr": None, "norm_constraint": None, "relative_norm": 30.0, "num_steps": 60}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("form", ["low_rank", "dense"])
@pytest.mark.parametrize("values", [STRONG, BY_WEIGHT], ids=["given", "by the weight"])
def test_an_edit_takes_and_goes_again(kind: str, form: str, values: dict[str, Any]) -> None:
    base, tokenizer = willing(kind), spaced_tokenizer()
    ids = torch.arange(9)[None]
    before = base(ids).logits
    editor = get_editor("ft", layers=(1,), form=form, **values)
    model = get_peft_model(base, PruneEditConfig(layers_to_transform=[1], restraint="none")).eval()
    (outcome,) = EditSession(model, tokenizer, editor, monitor=False).edit(REQUEST)
    assert outcome.applied, outcome.reason
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("form", ["low_rank", "dense"])
def test_the_change_stays_within_the_constraint_and_reaches_it(form: str) -> None:
    base, tokenizer = willing("gpt2"), spaced_tokenizer()
    limit = 1e-3
    editor = get_editor("ft", layers=(1,), form=form, lr=0.05, norm_constraint=limit, num_steps=5, energy=1.0)
    edit = editor.compute(base, tokenizer, [REQUEST], editor.prepare(base, tokenizer))
    (update,) = edit.updates.values()
    change = update.B @ update.A
    if form == "dense":
        assert limit * 0.99 < float(change.abs().max()) <= limit * 1.0001
    else:
        assert update.rank == 4
        assert float(change.norm()) == pytest.approx(limit * change.numel() ** 0.5, rel=1e-4)


def test_the_dense_form_takes_the_gradient_steps_of_plain_fine_tuning() -> None:
    base, tokenizer = willing("gpt2"), spaced_tokenizer()
    editor = get_editor("ft", layers=(1,), form="dense", lr=1e-3, norm_constraint=1.0, num_steps=3, energy=1.0)
    (update,) = editor.compute(base, tokenizer, [REQUEST], editor.prepare(base, tokenizer)).updates.values()
    plain = willing("gpt2")
    plain.load_state_dict(base.state_dict())
    weight = mlp_output_module(plain, 1)[1].weight
    start = weight.detach().clone()
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    batch = TargetBatch.build(plain, tokenizer, [REQUEST.text], [REQUEST.target_new])
    for _ in range(3):
        optimizer.zero_grad()
        (-target_log_probs(plain, batch).mean()).backward()
        optimizer.step()
    assert torch.allclose((update.B @ update.A).T, weight.detach() - start, atol=2e-5)


def test_likelihoods_equal_those_of_a_plain_pass() -> None:
    model, tokenizer = willing("llama"), spaced_tokenizer()
    prompts, targets = ["note sea sane ant", "tea"], ["ten", "net son"]
    found = target_log_probs(model, TargetBatch.build(model, tokenizer, prompts, targets))
    for index, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        start = tokenizer(prompt)["input_ids"]
        whole = tokenizer(f"{prompt} {target}")["input_ids"]
        scores = torch.log_softmax(model(torch.tensor([whole])).logits[0], -1)
        mean = torch.stack([scores[i - 1, whole[i]] for i in range(len(start), len(whole))]).mean()
        assert float(found[index]) == pytest.approx(float(mean), abs=1e-5)


@pytest.mark.parametrize("form", ["low_rank", "dense"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_room_and_rate_follow_from_the_weight(form: str, scale: float) -> None:
    base, tokenizer = willing("gpt2"), spaced_tokenizer()
    weight = mlp_output_module(base, 1)[1].weight
    with torch.no_grad():
        weight.mul_(scale)
    given = {"lr": None, "norm_constraint": None, "relative_norm": 3.0, "num_steps": 200, "stop_probability": 1.0}
    editor = get_editor("ft", layers=(1,), form=form, energy=1.0, **given)
    (update,) = editor.compute(base, tokenizer, [REQUEST], editor.prepare(base, tokenizer)).updates.values()
    limit = 3 * float(weight.double().square().mean().sqrt()) / weight.shape[0] ** 0.5
    change = (update.B @ update.A).double()
    if form == "dense":
        assert float(change.abs().max()) <= limit * 1.0001
        assert editor.hyperparameters.rate(limit, weight.shape[0]) == pytest.approx(limit / 200)
    else:
        assert float(change.square().mean().sqrt()) <= limit * 1.0001
        assert editor.hyperparameters.rate(limit, 16) == pytest.approx(0.04)
    assert editor.stronger().hyperparameters.relative_norm == 6 and editor.hyperparameters.pushed()["num_steps"] == 400


def test_a_weight_that_cannot_be_read_asks_for_the_room_where_that_follows_from_it() -> None:
    base, tokenizer = willing("gpt2"), spaced_tokenizer()
    for name, values in (("ft", {}), ("locft_bf", {"mini_batch": 4, "form": "dense"})):
        editor = get_editor(name, model=base, layers=(1,), **values)
        assert editor.hyperparameters.lr is None and editor.hyperparameters.norm_constraint is None
        prepared = editor.prepare(base, tokenizer)
        prepared.once(("size", mlp_output_module(base, 1)[0]), lambda: None)
        with pytest.raises(UnsupportedModelError, match="weight cannot be read; give norm_constraint"):
            editor.compute(base, tokenizer, [REQUEST], prepared)
    assert get_editor("locft_bf", model=base, layers=(1,)).compute(base, tokenizer, [REQUEST], prepared).updates


@pytest.mark.parametrize(("field", "value"), [("form", "thin"), ("rank", 0), ("energy", 2.0), ("layers", (2, 1))])
def test_bad_hyperparameters_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        get_editor("ft", **{field: value})


def test_hyperparameters_are_a_frozen_dataclass() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_editor("ft").hyperparameters.rank = 3
