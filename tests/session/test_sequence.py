"""A sequence of edits: each on the model as the last left it, verified, rolled out where it did not take."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import get_peft_model

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.editors import ROME, Edit, collect_second_moments
from peft_prune.generation import greedy_answers
from peft_prune.session import edit_in_sequence
from peft_prune.spectral import LowRankUpdate
from tests.editors.test_rome import EASY, TEXTS
from tests.evaluation.tiny import spaced_tokenizer
from tests.tiny import willing

REQUESTS = [EditRequest("note sea {}", subject, "ten") for subject in ("sane ant", "tone seat", "oats")]
MODULE = "transformer.h.1.mlp.c_proj"


@pytest.fixture
def ready():
    base, tokenizer = willing("gpt2"), spaced_tokenizer()
    moments = collect_second_moments(base, tokenizer, TEXTS, [MODULE], progress=False)
    editor = ROME(EASY)
    prepared = editor.prepare(base, tokenizer, moments)
    model = get_peft_model(base, PruneEditConfig(layers_to_transform=[1], restraint="none")).eval()
    return model, tokenizer, editor, prepared


def test_every_edit_that_counts_as_applied_gives_its_target_by_free_generation(ready) -> None:
    model, tokenizer, editor, prepared = ready
    moments: list[str] = []

    def check(outcome) -> None:
        if outcome.applied:
            moments.append(greedy_answers(model, tokenizer, [outcome.request.text], max_new_tokens=1)[0].strip())

    outcomes = edit_in_sequence(model, tokenizer, editor, prepared, REQUESTS, after_edit=check)
    applied = [outcome for outcome in outcomes if outcome.applied]
    assert [outcome.index for outcome in outcomes] == [0, 1, 2]
    assert len(applied) >= 2 and moments == ["ten"] * len(applied)
    ((_, layer),) = model.edited_layers()
    assert layer.rank("default") == len(applied) == layer.prune_edit_update["default"].edits


def test_an_edit_that_does_not_take_is_rolled_out_bit_for_bit_and_says_why(ready) -> None:
    model, tokenizer, editor, prepared = ready
    edit_in_sequence(model, tokenizer, editor, prepared, REQUESTS[:1])
    ids = torch.arange(12)[None]
    before = model(ids).logits
    weak = ROME(dataclasses.replace(EASY, clamp_norm_factor=1e-4))
    (outcome,) = edit_in_sequence(model, tokenizer, weak, prepared, REQUESTS[1:2])
    assert not outcome.applied and "did not take" in outcome.reason and "'ten'" in outcome.reason
    assert torch.equal(model(ids).logits, before)


class _Broken(ROME):
    def compute(self, model, tokenizer, requests, prepared, earlier=None) -> Edit:
        update = LowRankUpdate(B=torch.full((16, 1), torch.inf), A=torch.zeros(1, 64))
        return Edit(tuple(requests), {MODULE: update})


def test_an_update_that_is_not_finite_fails_visibly_and_changes_nothing(ready) -> None:
    model, tokenizer, _, prepared = ready
    (outcome,) = edit_in_sequence(model, tokenizer, _Broken(EASY), prepared, REQUESTS[:1])
    assert not outcome.applied and "NaN or Inf" in outcome.reason
    ((_, layer),) = model.edited_layers()
    assert layer.rank("default") == 0


def test_the_same_sequence_gives_the_same_bits(ready) -> None:
    model, tokenizer, editor, prepared = ready
    start = model.edit_state()
    runs = []
    for _ in range(2):
        model.restore_edit_state(start)
        edit_in_sequence(model, tokenizer, editor, prepared, REQUESTS)
        ((_, layer),) = model.edited_layers()
        runs.append(layer.effective_update("default").dense())
    assert torch.equal(runs[0], runs[1])
