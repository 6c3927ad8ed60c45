"""A session of edits: verified, tried again, replaced, rolled out, undone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from peft import PeftModel

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.editors import ROME, Edit, get_editor
from peft_prune.errors import HistoryError, InvalidRequestError, SessionStateError
from peft_prune.models.answers import answers_with
from peft_prune.models.generation import greedy_answers
from peft_prune.monitoring import SessionCallback
from peft_prune.session import BatchFailedError, EditSession, History
from peft_prune.session.verification import verify
from peft_prune.spectral import LowRankUpdate
from tests.editors.test_rome import EASY
from tests.session.scene import MODULE, REQUESTS, adapted, moments, resumed, session
from tests.talking import spaced_tokenizer
from tests.tiny import willing

IDS = torch.arange(12)[None]


def layer_of(run: EditSession):
    ((_, layer),) = run.model.edited_layers()
    return layer


def factors(run: EditSession) -> tuple[torch.Tensor, torch.Tensor]:
    update = layer_of(run).effective_update("default")
    return update.B, update.A


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class _Broken(ROME):
    """Half precision overflows at one subject."""

    subjects = ("oats",)

    def compute(self, model, tokenizer, requests, prepared, earlier=None) -> Edit:
        edit = super().compute(model, tokenizer, requests, prepared, earlier)
        if not any(request.subject in self.subjects for request in requests):
            return edit
        update = LowRankUpdate(B=torch.full((16, len(requests)), torch.inf), A=torch.zeros(len(requests), 64))
        return dataclasses.replace(edit, updates={MODULE: update})


class _Weak(ROME):
    """The second request of a batch gets no share to speak of, and nothing stronger helps."""

    separable = True

    def stronger(self) -> None:
        return None

    def compute(self, model, tokenizer, requests, prepared, earlier=None) -> Edit:
        edit = super().compute(model, tokenizer, requests, prepared)
        weak = [request.subject == "tone seat" for request in requests]
        update = edit.updates[MODULE]
        scale = torch.tensor([1e-6 if one else 1.0 for one in weak])
        return dataclasses.replace(
            edit,
            updates={MODULE: LowRankUpdate(B=update.B * scale, A=update.A)},
            owners=edit.owners if self.separable else {},
            keys={MODULE: torch.arange(float(len(requests)))[:, None].repeat(1, 64)},
        )


class _Lumped(_Weak):
    separable = False


def test_every_edit_that_counts_as_applied_gives_its_target_by_free_generation() -> None:
    run = session()
    results = run.edit(REQUESTS[:3])
    assert [result.id for result in results] == [1, 2, 3]
    assert all(result.applied and result.stands for result in results)
    for result in results:
        assert not answers_with(result.answer_before, "ten") and answers_with(result.answer_after, "ten")
        assert result.probability_after > result.probability_before
        assert set(result.condition_numbers) == {MODULE} and result.condition_numbers[MODULE] > 1
    last = greedy_answers(run.model, run.tokenizer, [REQUESTS[2].text], max_new_tokens=1)
    assert answers_with(last[0], "ten")
    assert layer_of(run).rank("default") == 3 == layer_of(run).prune_edit_update["default"].edits


def test_probabilities_are_those_of_the_whole_model_in_float64() -> None:
    run = session()
    (result,) = run.edit(REQUESTS[0])
    tokenizer = spaced_tokenizer()
    prompt = tokenizer(REQUESTS[0].text)["input_ids"]
    whole = tokenizer(REQUESTS[0].text + " ten")["input_ids"]
    model = run.model.double()
    logits = torch.log_softmax(model(torch.tensor([whole])).logits[0], -1)
    scores = [float(logits[place - 1, whole[place]]) for place in range(len(prompt), len(whole))]
    assert result.probability_after == pytest.approx(math.exp(sum(scores) / len(scores)), rel=1e-4)


def test_a_stronger_setting_is_tried_once_and_stated() -> None:
    weak = ROME(EASY, clamp_norm_factor=0.4, v_num_grad_steps=60)
    run = session(editor=weak)
    results = [run.edit(request)[0] for request in REQUESTS[:4]]
    retried = [result for result in results if result.stronger]
    assert retried and all("clamp_norm_factor=0.6" in result.stronger for result in retried)
    hopeless = session(editor=ROME(EASY, clamp_norm_factor=1e-4))
    before = hopeless.model(IDS).logits
    (result,) = hopeless.edit(REQUESTS[0])
    assert result.status == "failed" and "did not take" in result.reason and "'ten'" in result.reason
    assert result.stronger and not result.stands
    assert torch.equal(hopeless.model(IDS).logits, before)
    assert layer_of(hopeless).rank("default") == 0


@pytest.mark.parametrize("name", ["rome", "memit", "emmet", "alphaedit", "ft"])
def test_editors_have_a_stronger_setting_and_mend_has_none(name: str) -> None:
    editor = get_editor(name)
    assert editor.stronger().hyperparameters != editor.hyperparameters
    assert get_editor("mend").stronger() is None


def test_of_a_batch_those_that_took_stay_without_the_share_of_the_other() -> None:
    run = session(editor=_Weak(EASY))
    results = run.edit(REQUESTS[:3], batch_size=3)
    assert [result.status for result in results] == ["applied", "failed", "applied"]
    assert layer_of(run).rank("default") == 2 == layer_of(run).prune_edit_update["default"].edits
    assert run.workspace.keys[MODULE][:, 0].tolist() == [0.0, 2.0]


def test_a_batch_whose_factors_belong_together_is_tried_one_by_one() -> None:
    run = session(editor=_Lumped(EASY))
    results = run.edit(REQUESTS[:3], batch_size=3)
    assert [result.status for result in results] == ["applied", "failed", "applied"]
    run.undo(1)
    assert layer_of(run).rank("default") == 1


def test_edits_that_share_their_factors_are_undone_together() -> None:
    run = session(editor=_Lumped(EASY))
    run.edit([REQUESTS[0], REQUESTS[2]], batch_size=2)
    with pytest.raises(SessionStateError, match=r"edit: \[1\] share their factors with others; undo \[1, 2\] together"):
        run.undo(1)
    run.undo([1, 2])
    assert layer_of(run).rank("default") == 0


def test_an_update_that_is_not_finite_fails_alone_and_the_rest_of_its_batch_proceeds() -> None:
    run = session(editor=_Broken(EASY))
    results = run.edit(REQUESTS[:4], batch_size=4)
    assert [result.status for result in results] == ["applied", "applied", "failed", "applied"]
    assert "NaN or Inf" in results[2].reason
    assert torch.isfinite(run.model(IDS).logits).all()


def test_bad_requests_are_rejected_with_their_reason_and_the_rest_proceeds() -> None:
    run = session()
    bad = {"prompt": "no place", "subject": "sea", "target_new": "ten"}
    long = EditRequest("note {}" + " sea" * 60, "tea", "ten")
    results = run.edit([REQUESTS[0], bad, long, REQUESTS[1]], batch_size=4)
    assert [result.status for result in results] == ["applied", "rejected", "rejected", "applied"]
    assert "prompt: 'no place'" in results[1].reason and results[1].request is None
    assert [record.status for record in run.history.edits()] == ["applied", "rejected", "rejected", "applied"]
    assert run.history.edits()[1].request is None


class _Picky(ROME):
    def compute(self, model, tokenizer, requests, prepared, earlier=None) -> Edit:
        if any(request.subject == "oats" for request in requests):
            raise InvalidRequestError("subject: 'oats' is not edited here")
        return super().compute(model, tokenizer, requests, prepared)


def test_a_request_that_cannot_be_computed_does_not_spoil_its_batch() -> None:
    results = session(editor=_Picky(EASY)).edit(REQUESTS[:3], batch_size=3)
    assert [result.status for result in results] == ["applied", "applied", "rejected"]
    assert results[2].reason == "subject: 'oats' is not edited here"


def test_on_failure_raise_says_so_and_keeps_what_took() -> None:
    run = session(editor=_Weak(EASY), on_failure="raise")
    with pytest.raises(BatchFailedError, match="edit 2: did not take") as error:
        run.edit(REQUESTS[:3], batch_size=2)
    assert [result.status for result in error.value.results] == ["applied", "failed"]
    assert [record.id for record in run.history.edits(standing=True)] == [1]


def test_on_failure_keep_leaves_the_factors_in_and_the_failure_visible() -> None:
    run = session(editor=_Weak(EASY), on_failure="keep")
    results = run.edit(REQUESTS[:3], batch_size=3)
    assert [result.status for result in results] == ["applied", "failed", "applied"]
    assert all(result.stands for result in results)
    assert layer_of(run).rank("default") == 3
    run.undo(2)
    assert layer_of(run).rank("default") == 2


def test_an_edit_that_contradicts_an_earlier_one_replaces_it() -> None:
    run = session()
    run.edit(REQUESTS[:3])
    assert run.conflicts(dataclasses.replace(REQUESTS[0], subject="Sane  Ant", target_new="sea")) == [1]
    other = dataclasses.replace(REQUESTS[0], target_new="sea")
    assert run.conflicts(other) == [1]
    (result,) = run.edit(other)
    assert result.applied and result.replaced == (1,)
    record = run.history.edit(1)
    assert record.undone_at and record.undone_reason == "replaced by edit 4"
    assert [r.id for r in run.history.edits(standing=True)] == [2, 3, 4]
    assert layer_of(run).rank("default") == 3
    assert run.conflicts(other) == []


def test_what_was_to_be_replaced_stays_when_the_new_edit_does_not_take() -> None:
    run = session(editor=_Weak(EASY))
    run.edit([REQUESTS[0], REQUESTS[2]])
    before = factors(run)
    hopeless = dataclasses.replace(REQUESTS[0], target_new="sea")
    run.editor = _Weak(EASY, clamp_norm_factor=1e-4)
    (result,) = run.edit(hopeless)
    assert result.status == "failed" and result.replaced == ()
    assert [r.id for r in run.history.edits(standing=True)] == [1, 2]
    assert same(factors(run), before)


def test_contradictions_can_be_kept_or_rejected() -> None:
    other = dataclasses.replace(REQUESTS[0], target_new="sea")
    rejecting = session(on_conflict="reject")
    first, second = rejecting.edit([REQUESTS[0], other], batch_size=2)
    assert first.applied and second.status == "rejected" and "contradicts edit 1" in second.reason
    keeping = session(on_conflict="keep")
    results = keeping.edit([REQUESTS[0], other], batch_size=2)
    assert [result.took for result in results] == [True, True] and layer_of(keeping).rank("default") == 2
    # both cannot be the model's answer
    assert [result.status for result in results] == ["lost", "applied"]


@pytest.mark.parametrize("schedule", [{"restrain_on": "every", "restrain_every": 2}, {"restrain_on": "merge"}])
def test_undo_gives_the_adapter_that_would_have_stood_without_the_edit(schedule) -> None:
    run = session(model=adapted(restraint="clip", **schedule))
    run.edit(REQUESTS)
    kept = {record.id: run.history.factors(record.id) for record in run.history.edits(standing=True)}
    run.undo(2)
    expected = adapted(restraint="clip", **schedule)
    for edit, own in kept.items():
        if edit != 2:
            expected.add_edits(own.updates, on_schedule=False)
        if schedule["restrain_on"] == "every" and edit in (2, 4):
            expected.restrain()
    ((_, layer),) = expected.edited_layers()
    assert torch.allclose(run.model(IDS).logits, expected(IDS).logits, atol=1e-5)
    assert torch.equal(layer_of(run).raw_update("default").dense(), layer.raw_update("default").dense())
    run.undo([1, 3, 4, 5], reason="all of them")
    with run.model.disable_adapter():
        base = run.model(IDS).logits
    assert torch.equal(run.model(IDS).logits, base)
    assert run.history.edit(3).undone_reason == "all of them"


def test_undo_of_what_does_not_stand_is_an_error_that_names_it() -> None:
    run = session(editor=_Weak(EASY))
    run.edit(REQUESTS[:2])
    with pytest.raises(SessionStateError, match="edit: 2 does not stand, it is failed"):
        run.undo(2)
    with pytest.raises(HistoryError, match="edit: 9 is not in the history, which has edits 1 to 2"):
        run.undo(9)
    run.undo(1)
    with pytest.raises(SessionStateError, match="edit: 1 does not stand, it was undone at"):
        run.undo(1)


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_editors_with_a_history_of_keys_lose_those_of_an_undone_edit(name: str) -> None:
    options = {"v_num_grad_steps": 60, "clamp_norm_factor": 30.0, "context_lengths": ((3, 2),)}
    if name == "memit":
        options["mom2_update_weight"] = 10.0
    editor = get_editor(name, layers=(1,), **options)
    run = session(editor=editor)
    results = run.edit(REQUESTS[:3])
    assert all(result.applied for result in results), results
    keys = run.workspace.keys[MODULE].clone()
    assert keys.shape == (3, 64)
    run.undo(2)
    assert torch.equal(run.workspace.keys[MODULE], keys[[0, 2]])


def test_a_restraint_is_of_the_raw_sum_and_never_of_a_restrained_one() -> None:
    run = session(model=adapted(restraint="linear", restrain_on="merge"))
    run.edit(REQUESTS[:3])
    run.restrain()
    once = factors(run)
    run.restrain()
    assert same(factors(run), once)
    assert [record.restraint for record in run.history.restraints()] == ["linear", "linear"]


def test_the_verification_comes_before_the_restraint_of_the_schedule() -> None:
    # a restraint that takes nearly all of the update away
    model = adapted(restraint="clip", restrain_on="every", restrain_every=1)
    layer = next(layer for _, layer in model.edited_layers())
    layer._sigma_max_base = 1e-3
    (result,) = session(model=model).edit(REQUESTS[0])
    assert result.took and result.stands and result.status == "lost" and not result.applied
    assert not answers_with(result.answer_after, "ten")


def test_a_saved_adapter_gives_the_same_outputs_and_the_log_knows_of_its_restraint(tmp_path) -> None:
    run = session(model=adapted(restraint="clip", restrain_on="merge"))
    run.edit(REQUESTS[:3])
    run.save(tmp_path / "adapter")
    again = PeftModel.from_pretrained(willing("gpt2"), str(tmp_path / "adapter")).eval()
    assert torch.allclose(again(IDS).logits, run.model(IDS).logits, atol=1e-5)
    assert len(run.history.restraints()) == 1
    with pytest.raises(ValueError, match="exists"):
        run.save(tmp_path / "adapter")


def test_saving_past_the_session_is_noticed(tmp_path) -> None:
    run = session(tmp_path / "edits.db", model=adapted(restraint="clip", restrain_on="merge"))
    run.edit(REQUESTS[:2])
    run.model.save_pretrained(str(tmp_path / "adapter"))
    run.edit(REQUESTS[2])
    run.close()
    again = resumed(tmp_path / "edits.db")
    assert same(factors(again), factors(run))


@pytest.mark.parametrize("then", ["save", "verify", "close"])
def test_a_restraint_past_the_session_is_noticed_whatever_comes_next(tmp_path, then: str) -> None:
    run = session(tmp_path / "edits.db", model=adapted(restraint="clip", restrain_on="merge"))
    run.edit(REQUESTS)
    run.model.merge_adapter()
    run.model.unmerge_adapter()
    {"save": lambda: run.save(tmp_path / "adapter"), "verify": run.verify, "close": run.close}[then]()
    if then != "close":
        held = {record.id: record.state != "lost" for record in run.history.edits(standing=True)}
        assert held == {edit: one.holds for edit, one in verified(run).items()} and not all(held.values())
    run.close()
    with History.read(tmp_path / "edits.db") as log:
        assert [(record.module, record.restraint) for record in log.restraints()] == [(MODULE, "clip")]
    assert same(factors(resumed(tmp_path / "edits.db")), factors(run))


def verified(run: EditSession) -> dict:
    records = run.history.edits(standing=True)
    found = verify(run.model, run.tokenizer, [record.request for record in records])
    return {record.id: one for record, one in zip(records, found, strict=True)}


def test_a_session_whose_adapter_is_gone_closes(tmp_path) -> None:
    run = session(tmp_path / "edits.db")
    run.edit(REQUESTS[0])
    run.model.add_adapter("other", PruneEditConfig(layers_to_transform=[1]))
    run.model.set_adapter("other")
    run.model.delete_adapter("default")
    run.close()
    resumed(tmp_path / "edits.db").close()


class _Interrupt(SessionCallback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_batch_end(self, session, report) -> None:
        if report.batch == self.at:
            raise KeyboardInterrupt


def test_an_interruption_leaves_the_adapter_and_the_log_at_the_batch_before(tmp_path) -> None:
    run = session(tmp_path / "edits.db", callbacks=[_Interrupt(2)])
    run.edit(REQUESTS[:2], batch_size=2)
    before = factors(run)
    with pytest.raises(KeyboardInterrupt):
        run.edit(REQUESTS[2:])
    assert same(factors(run), before) and run.history.last_edit == 2
    run.callbacks.clear()
    assert all(result.applied for result in run.edit(REQUESTS[2:4]))


def test_edits_of_a_plain_model_get_an_adapter_on_the_editors_layers() -> None:
    run = EditSession(willing("gpt2"), spaced_tokenizer(), ROME(EASY), statistics=moments())
    assert isinstance(run.model, PeftModel) and run.edit(REQUESTS[0])[0].applied
    assert [name for name, _ in run.model.edited_layers()] == [MODULE]


def test_wrong_options_are_named() -> None:
    for option, value in (("on_failure", "ignore"), ("on_conflict", "merge")):
        with pytest.raises(ValueError, match=f"{option}: '{value}' is not one of"):
            session(**{option: value})
    with pytest.raises(ValueError, match="batch_size: 0"):
        session().edit(REQUESTS, batch_size=0)
    used = session()
    used.edit(REQUESTS[0])
    with pytest.raises(ValueError, match="its adapter holds edits"):
        session(model=used.model)
    with pytest.raises(ValueError, match=r"does not adapt transformer\.h\.0\.mlp\.c_proj"):
        session(editor=ROME(EASY, layers=(0,), mom2_adjustment=False))
    used.close()
    with pytest.raises(SessionStateError, match="it is closed"):
        used.edit(REQUESTS[1])


def test_a_merged_adapter_cannot_be_edited() -> None:
    run = session()
    run.edit(REQUESTS[0])
    run.model.merge_adapter()
    with pytest.raises(SessionStateError, match="unmerge_adapter"):
        run.edit(REQUESTS[1])


def test_the_beginning_of_a_word_does_not_pass_for_an_answer() -> None:
    model, tokenizer = adapted(), spaced_tokenizer()
    prompts = [f"{word} {other}" for word in ("sane", "tone", "oats", "tea") for other in ("ant", "eat", "nest", "sea")]
    found = 0
    for prompt, answer in zip(prompts, greedy_answers(model, tokenizer, prompts, max_new_tokens=4), strict=True):
        word = answer.split()[0] if answer.split() else ""
        for end in range(1, len(word) + 1):
            request = EditRequest(f"{prompt[: -len(prompt.split()[-1])]}{{}}", prompt.split()[-1], word[:end])
            (verified,) = verify(model, tokenizer, [request])
            if end < len(word):
                found += 1
                assert not verified.holds, (prompt, answer, word[:end])
            elif " " in answer.strip():
                assert verified.holds, (prompt, answer, word)
    assert found
