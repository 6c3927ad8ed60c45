"""What editors keep of a model: nothing of one editor reaches another, nothing of one run the next."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from peft_prune import EditRequest
from peft_prune.editors import Edit, Editor, Prepared, collect_second_moments, get_editor
from tests.editors.test_rome import TEXTS
from tests.talking import spaced_tokenizer
from tests.tiny import willing

REQUEST = EditRequest("note sea {}", "sane ant", "ten")
COMMON = {"v_num_grad_steps": 4, "v_lr": 0.3, "context_lengths": ((4, 2),)}
EDITORS = [
    ("rome", {"layers": (1,), "mom2_shrinkage": 1e-3}),
    ("rome", {"layers": (1,), "mom2_shrinkage": 1.0}),
    ("memit", {"layers": (1,), "mom2_update_weight": 5.0}),
    ("memit", {"layers": (1,), "mom2_update_weight": 500.0}),
    ("emmet", {"layers": (1,), "mom2_update_weight": 5.0}),
    ("alphaedit", {"layers": (1,), "nullspace_energy": 0.3}),
    ("alphaedit", {"layers": (1,), "nullspace_energy": 0.6}),
    ("alphaedit", {"layers": (1,), "nullspace_energy": 0.3, "L2": 7.0}),
]


def rows(edit: Edit) -> torch.Tensor:
    (update,) = edit.updates.values()
    return update.A


@pytest.fixture(scope="module")
def scene():
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    editors: list[Editor] = [get_editor(name, **COMMON, **values) for name, values in EDITORS]
    moments = collect_second_moments(model, tokenizer, TEXTS, editors[0].modules(model), progress=False)
    return model, tokenizer, editors, moments


def test_editors_that_share_what_is_prepared_compute_what_each_computes_alone(scene) -> None:
    model, tokenizer, editors, moments = scene
    alone = [
        rows(editor.compute(model, tokenizer, [REQUEST], editor.prepare(model, tokenizer, moments)))
        for editor in editors
    ]
    shared = editors[0].prepare(model, tokenizer, moments)
    for order in (range(len(editors)), reversed(range(len(editors)))):
        for index in order:
            found = rows(editors[index].compute(model, tokenizer, [REQUEST], shared))
            assert torch.equal(found, alone[index]), editors[index].hyperparameters
    assert len({tuple(row.flatten().tolist()) for row in alone}) == len(alone)


def test_other_moments_are_not_answered_with_what_was_made_of_the_first(scene) -> None:
    model, tokenizer, editors, moments = scene
    other = dataclasses.replace(moments, moments={name: m + torch.eye(len(m)) for name, m in moments.moments.items()})
    for editor in editors:
        first = editor.prepare(model, tokenizer, moments)
        editor.compute(model, tokenizer, [REQUEST], first)
        second = dataclasses.replace(first, statistics=other)
        fresh = editor.prepare(model, tokenizer, other)
        assert torch.equal(
            rows(editor.compute(model, tokenizer, [REQUEST], second)),
            rows(editor.compute(model, tokenizer, [REQUEST], fresh)),
        )


def test_keys_of_one_run_do_not_reach_the_next(scene) -> None:
    model, tokenizer, editors, moments = scene
    for editor in editors[2:]:
        prepared = editor.prepare(model, tokenizer, moments)
        before = editor.compute(model, tokenizer, [REQUEST], prepared)
        generator = torch.Generator().manual_seed(0)
        earlier = {name: torch.randn(3, keys.shape[1], generator=generator) for name, keys in before.keys.items()}
        editor.compute(model, tokenizer, [REQUEST], prepared, earlier)
        assert torch.equal(rows(editor.compute(model, tokenizer, [REQUEST], prepared)), rows(before))


def test_a_stronger_editor_takes_up_what_its_weaker_one_has_made(scene) -> None:
    model, tokenizer, editors, moments = scene
    for editor in editors:
        prepared = editor.prepare(model, tokenizer, moments)
        editor.compute(model, tokenizer, [REQUEST], prepared)
        made = dict(prepared._made)
        editor.stronger().compute(model, tokenizer, [REQUEST], prepared)
        assert prepared._made.keys() == made.keys()


def test_what_was_prepared_for_others_is_refused_by_name(scene) -> None:
    model, tokenizer, editors, moments = scene
    rome, memit = editors[0], editors[2]
    with pytest.raises(ValueError, match=r"prepared: is for layers \[0\], this rome changes \[1\]"):
        rome.compute(model, tokenizer, [REQUEST], Prepared((0,)))
    with pytest.raises(ValueError, match="statistics: ROME needs the second moment of"):
        rome.compute(model, tokenizer, [REQUEST], Prepared((1,)))
    with pytest.raises(ValueError, match="statistics: MEMIT needs the second moment of"):
        memit.compute(model, tokenizer, [REQUEST], Prepared((1,)))
    with pytest.raises(ValueError, match=r"prepared: has 1 contexts, the context_lengths \(\(4, 2\),\) .* make 3"):
        memit.compute(model, tokenizer, [REQUEST], Prepared((1,), ("",), moments))
