"""Requests that name no subject: edited, verified, written, undone and resumed where an editor needs none."""

from __future__ import annotations

import json

import pytest
import torch

from peft_prune import EditRequest
from peft_prune.consolidation.neighbors import neighbor_passages
from peft_prune.consolidation.passages import edit_passages
from peft_prune.consolidation.phrasings import lent_phrasings, prompt_in
from peft_prune.editors import get_editor
from peft_prune.errors import InvalidRequestError
from peft_prune.evaluation import evaluate
from peft_prune.evaluation.subjects import edited_subjects
from peft_prune.requests import load_requests
from peft_prune.session import EditSession
from tests.session.scene import MODULE, adapted, moments, resumed, session
from tests.talking import spaced_tokenizer
from tests.tiny import willing

ASKED = [
    EditRequest("note sea sane ant", None, "ten"),
    EditRequest("tone seat", None, "ten"),
    EditRequest("note sea {}", "oats", "ten"),
    EditRequest("nest tea", None, "sea"),
]
EDITOR = {"layers": (1,), "lr": None, "ridge": None, "rehearsals": 16, "step": 8.0}


def ultraedit():
    return get_editor("ultraedit", **EDITOR)


def factors(run: EditSession) -> tuple[torch.Tensor, torch.Tensor]:
    (_, layer), *_ = run.model.edited_layers()
    raw = layer.raw_update("default")
    return raw.B, raw.A


def test_an_editor_that_needs_no_subject_edits_a_question_and_the_log_knows_it(tmp_path) -> None:
    with session(tmp_path / "edits.db", ultraedit()) as run:
        results = run.edit(ASKED, batch_size=2)
        assert {result.status for result in results} <= {"applied", "weakened", "lost", "failed"}
        applied = [result for result in results if result.stands]
        assert applied, [result.reason for result in results]
        assert [record.request for record in run.history.edits()] == ASKED
        measured = evaluate(run.model, spaced_tokenizer(), [result.request for result in applied])
        assert measured["after"]["efficacy_greedy"]["n"] == len(applied)


def test_others_refuse_it_in_one_line_that_names_who_takes_it() -> None:
    with session() as run:
        (result,) = run.edit(ASKED[0])
    assert result.status == "rejected" and result.reason is not None
    assert result.reason == (
        "subject: rome edits at a subject's last token, and prompt 'note sea sane ant' names none; name it, or use an "
        "editor that needs none (ft, locft_bf, mend, ultraedit)"
    )


def test_a_session_that_was_resumed_goes_on_bit_for_bit(tmp_path) -> None:
    with session(tmp_path / "whole.db", ultraedit(), on_failure="keep") as run:
        run.edit(ASKED[:2])
        run.edit(ASKED[2:])
        expected = factors(run)
    with session(tmp_path / "parts.db", ultraedit(), on_failure="keep") as run:
        run.edit(ASKED[:2])
    with resumed(tmp_path / "parts.db", on_failure="keep") as run:
        assert run.editor.hyperparameters == ultraedit().hyperparameters
        run.edit(ASKED[2:])
        found = factors(run)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_an_undo_leaves_the_statistics_of_what_stands(tmp_path) -> None:
    with session(tmp_path / "edits.db", ultraedit(), on_failure="keep") as run:
        run.edit(ASKED)
        before = run.workspace.keys.features[MODULE]
        assert float(before[0, 0]) == sum(float(run.history.factors(n).features[MODULE][0, 0]) for n in (1, 2, 3, 4))
        run.undo(2)
        after = run.workspace.keys.features[MODULE]
    with resumed(tmp_path / "edits.db") as run:
        assert torch.equal(run.workspace.keys.features[MODULE], after)
    assert float(after[0, 0]) < float(before[0, 0])


def test_two_questions_of_one_relation_do_not_contradict_each_other(tmp_path) -> None:
    first, second = (EditRequest(prompt, None, "ten", relation_id="P1") for prompt in ("tone seat", "note sea"))
    again = EditRequest("tone  Seat", None, "nose", relation_id="P1")
    with session(None, ultraedit(), on_failure="keep") as run:
        run.edit([first, second])
        assert run.conflicts(second) == [] and run.conflicts(again) == [1]


def test_records_without_a_subject_are_read_and_a_place_for_one_needs_it(tmp_path) -> None:
    path = tmp_path / "qa.json"
    path.write_text(json.dumps([{"prompt": "Who wrote it?", "target_new": "Ann"}, {"src": "Where?", "alt": "Rome"}]))
    assert [(one.text, one.subject, one.name) for one in load_requests(path)] == [
        ("Who wrote it?", None, "Who wrote it?"),
        ("Where?", None, "Where?"),
    ]
    for record, says in (
        ({"prompt": "{} is in", "target_new": "a"}, "subject: is missing"),
        ({"prompt": "It is in", "target_new": "a", "subjct": "b"}, "subject: is missing, and subjct is no field"),
    ):
        with pytest.raises(InvalidRequestError, match=says):
            EditRequest.from_record(record)
    with pytest.raises(InvalidRequestError, match=r"subject: is missing, and the prompt '\{\} is' holds its place"):
        EditRequest("{} is", None, "a")
    with pytest.raises(InvalidRequestError, match=r"question: 'Is \{\}\?' holds the place"):
        EditRequest("It is", None, "a", question="Is {}?")
    stored = EditRequest("It is", None, "a").document()
    assert EditRequest.stored(stored) == EditRequest("It is", None, "a")


def test_consolidation_reads_a_question_as_it_stands_and_lends_it_nothing() -> None:
    asked, named = EditRequest("tone seat", None, "ten", relation_id="P1"), EditRequest("note {}", "oats", "ten")
    other = EditRequest("sea {}", "tea", "ten", relation_id="P1")
    assert lent_phrasings([asked, other]) == [(), ()]
    assert prompt_in("tone seat is ten", asked) is None
    (passages,) = edit_passages(spaced_tokenizer(), [asked], [], 0, 0)
    assert spaced_tokenizer().decode(passages[0][0].ids).startswith("tone seat")
    assert edited_subjects([asked, named]) == {"oats"}
    model = adapted()
    assert neighbor_passages(model, spaced_tokenizer(), [asked], 2) == []


def test_what_the_history_holds_of_another_layer_is_refused(tmp_path) -> None:
    from peft_prune.errors import HistoryError
    from peft_prune.session.records import Factors
    from peft_prune.session.replay import fitting

    checked = fitting(adapted(), lambda _: Factors({}, {}, {MODULE: torch.zeros(2, 7)}))
    with pytest.raises(HistoryError, match=r"its statistics of .* are for a layer of another shape"):
        checked(1)


def test_fine_tuning_takes_a_question_too() -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    editor = get_editor("ft", layers=(1,))
    edit = editor.compute(model, tokenizer, ASKED[:1], editor.prepare(model, tokenizer, moments()))
    assert edit.updates[MODULE].rank > 0
