"""A sequence of edits: each on the model as the last left it, verified, rolled out where it did not take."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import get_peft_model

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.editors import ROME, Edit, collect_second_moments
from peft_prune.errors import InvalidRequestError
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


class _Weakened(ROME):
    """The second request of a batch gets no share to speak of."""

    separable = True

    def compute(self, model, tokenizer, requests, prepared, earlier=None) -> Edit:
        edit = super().compute(model, tokenizer, requests, prepared)
        if len(requests) == 1:
            return edit
        ((name, update),) = edit.updates.items()
        scale = torch.ones(len(requests))
        scale[1] = 1e-6
        return dataclasses.replace(
            edit,
            updates={name: LowRankUpdate(B=update.B * scale, A=update.A)},
            owners=edit.owners if self.separable else {},
            keys={name: torch.arange(float(len(requests)))[:, None].expand(-1, 64)},
        )


def test_of_a_batch_those_that_took_stay_without_the_share_of_the_other(ready) -> None:
    model, tokenizer, _, prepared = ready
    editor = _Weakened(EASY)
    full = editor.compute(model, tokenizer, REQUESTS, prepared)
    outcomes = edit_in_sequence(model, tokenizer, editor, prepared, REQUESTS, batch_size=3)
    assert [outcome.applied for outcome in outcomes] == [True, False, True]
    assert "did not take" in outcomes[1].reason
    ((_, layer),) = model.edited_layers()
    kept = full.without({1}).updates[MODULE]
    raw = layer.raw_update("default")
    assert layer.rank("default") == 2 == layer.prune_edit_update["default"].edits
    assert torch.allclose(raw.B @ raw.A, kept.B @ kept.A, atol=1e-5)
    assert full.without({1}).keys[MODULE][:, 0].tolist() == [0.0, 2.0]


def test_a_batch_whose_factors_belong_together_is_tried_one_by_one(ready) -> None:
    model, tokenizer, _, prepared = ready
    editor = _Weakened(EASY)
    editor.separable = False
    outcomes = edit_in_sequence(model, tokenizer, editor, prepared, REQUESTS, batch_size=3)
    assert [outcome.index for outcome in outcomes] == [0, 1, 2]
    assert sum(outcome.applied for outcome in outcomes) >= 2
    with pytest.raises(ValueError, match="belong to all of its requests"):
        editor.compute(model, tokenizer, REQUESTS, prepared).without({0})


class _Picky(ROME):
    def compute(self, model, tokenizer, requests, prepared, earlier=None) -> Edit:
        if any(request.subject == "oats" for request in requests):
            raise InvalidRequestError("subject: 'oats' is not edited here")
        return super().compute(model, tokenizer, requests, prepared)


def test_a_request_that_cannot_be_computed_does_not_spoil_its_batch(ready) -> None:
    model, tokenizer, _, prepared = ready
    outcomes = edit_in_sequence(model, tokenizer, _Picky(EASY), prepared, REQUESTS, batch_size=3)
    assert [outcome.index for outcome in outcomes] == [0, 1, 2]
    assert outcomes[0].applied and outcomes[2].reason == "subject: 'oats' is not edited here"


def test_a_batch_size_below_one_is_named(ready) -> None:
    model, tokenizer, editor, prepared = ready
    with pytest.raises(ValueError, match="batch_size: 0"):
        edit_in_sequence(model, tokenizer, editor, prepared, REQUESTS, batch_size=0)
