"""What has become of an edit follows the model: seen again, weakened, lost, and held again."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

import pytest
import torch

from peft_prune.models.answers import answers_with
from peft_prune.models.generation import greedy_answers
from peft_prune.reporting import history_report
from peft_prune.session import EditSession, History, Verification
from peft_prune.session.records import WEAK_SHARE, state_seen
from peft_prune.session.schema import ADDED, statements
from peft_prune.session.workspace import LOOKS_PER_EDIT
from tests.reporting.builder import Builder
from tests.session.scene import REQUESTS, adapted, resumed, session
from tests.session.scripted import request as scripted_request
from tests.session.scripted import session as scripted_session
from tests.talking import dense_target_score, spaced_tokenizer


def told(run: EditSession) -> dict[int, str]:
    return {record.id: record.state for record in run.history.edits()}


def asked(run: EditSession) -> dict[int, bool]:
    """Whether the model gives each standing edit's target, by a generation of the test's own."""
    records = run.history.edits(standing=True)
    answers = greedy_answers(run.model, run.tokenizer, [r.request.text for r in records], max_new_tokens=6)
    return {r.id: answers_with(a, r.request.target_new) for r, a in zip(records, answers, strict=True)}


def agree(run: EditSession) -> bool:
    """Whether every edit is lost that the model does not hold, and no other one."""
    held, states = asked(run), told(run)
    return all((states[edit] == "lost") is not holds for edit, holds in held.items())


@pytest.mark.parametrize(
    ("holds", "probability", "taken", "state"),
    [
        (True, 0.8, 0.8, "applied"),
        (True, 0.41, 0.8, "applied"),
        (True, 0.39, 0.8, "weakened"),
        (True, None, 0.8, "weakened"),
        (True, 0.1, None, "applied"),
        (False, 0.9, 0.8, "lost"),
    ],
)
def test_weakened_is_below_half_of_the_probability_with_which_it_took(holds, probability, taken, state) -> None:
    assert WEAK_SHARE == 0.5 and state_seen(holds, probability, taken) == state


def test_a_restraint_an_undo_and_another_strength_are_followed_by_the_states(tmp_path: Path) -> None:
    run = session(tmp_path / "edits.db", model=adapted(restraint="clip", restrain_on="merge"))
    run.edit(REQUESTS)
    assert agree(run)
    before = told(run)
    run.restrain()
    lost = [edit for edit, state in told(run).items() if state == "lost" and before[edit] != "lost"]
    assert agree(run) and lost, "the scene's restraint must cost an edit"
    assert {record.seen.cause for record in run.history.edits()} == {"restraint"}
    assert {result.id: result.status for result in run.results} == told(run)
    (event,) = [
        one["data"] for one in run.history.events() if one["kind"] == "look" and one["data"]["cause"] == "restraint"
    ]
    assert {int(edit) for edit, state in event["edits"].items() if state == "lost"} == set(lost)
    run.undo([edit for edit in (1, 2, 3, 4, 5) if edit not in lost])
    assert agree(run)
    run.choose_restraints(dict.fromkeys(run.restraints(), "none"))
    assert agree(run) and any(told(run)[edit] != "lost" for edit in lost), "freed, one holds again"
    run.set_strengths(dict.fromkeys(lost, 0.0))
    assert all(told(run)[edit] == "lost" for edit in lost)
    run.close()
    with History.read(tmp_path / "edits.db") as log:
        assert {record.id: record.state for record in log.edits()} == told_by(run)


def told_by(run: EditSession) -> dict[int, str]:
    with History.read(run.history.path) as log:
        return {record.id: record.state for record in log.edits()}


def test_the_results_of_a_call_are_of_its_end_and_not_of_each_batch() -> None:
    run = session(model=adapted(restraint="clip", restrain_on="every", restrain_every=3))
    results = run.edit(REQUESTS)
    states = told(run)
    assert [result.status for result in results] == [states[result.id] for result in results]
    assert agree(run) and "lost" in states.values()
    gone = next(result for result in results if result.status == "lost")
    assert gone.took and not gone.applied and "took, and was lost: the model now answers" in gone.reason
    assert not answers_with(gone.seen.answer, gone.request.target_new)


def test_an_edit_that_another_of_the_same_call_replaces_is_undone_in_its_results() -> None:
    run = session()
    first, second = run.edit([REQUESTS[0], dataclasses.replace(REQUESTS[0], target_new="sea")])
    assert (first.status, first.stands, second.status) == ("undone", False, "applied")
    assert first.reason == "undone: replaced by edit 2"


def test_the_reference_is_the_probability_before_the_restraint_of_its_own_batch() -> None:
    run = session(model=adapted(restraint="clip", restrain_on="every", restrain_every=1))
    run.edit(REQUESTS[0])
    record = run.history.edit(1)
    model = adapted()
    model.add_edits(run.history.factors(1).updates, on_schedule=False)
    tokenizer = spaced_tokenizer()
    prompt = tokenizer(REQUESTS[0].text)["input_ids"]
    target = tokenizer(REQUESTS[0].text + " ten")["input_ids"][len(prompt) :]
    score = dense_target_score(model, prompt, target)
    assert record.probability_taken == pytest.approx(torch.tensor(score).exp().item(), rel=1e-3)
    assert record.seen.probability == pytest.approx(record.probability_after)


def test_what_verify_sees_is_written_down() -> None:
    run = session(look_again=False)
    run.edit(REQUESTS[:3])
    assert {record.seen.cause for record in run.history.edits()} == {"edit"}
    ((_, layer),) = run.model.edited_layers()
    layer.set_raw_update("default", layer.raw_update("default").scaled(0.0), edits=3)
    found = run.verify()
    assert not any(one.holds for one in found.values()) and set(told(run).values()) == {"lost"}
    assert {record.seen.cause for record in run.history.edits()} == {"verify"}


def test_looks_are_ten_for_each_edit_at_most_and_saving_looks_at_all(monkeypatch, tmp_path: Path) -> None:
    from peft_prune.session import workspace

    asked: list[int] = []
    original = workspace.verify

    def counting(model, tokenizer, requests, **options) -> list[Verification]:
        asked.append(len(requests))
        return original(model, tokenizer, requests, **options)

    monkeypatch.setattr(workspace, "verify", counting)
    run = scripted_session(restraint="none")
    count = 120
    for number in range(count):
        run.edit(scripted_request(number))
    # were all of them looked at after each edit, it would be 7,140
    assert sum(asked) <= (LOOKS_PER_EDIT + 1) * count and max(asked) > 100
    late = run.history.edit(1).seen.batch
    assert count - count // LOOKS_PER_EDIT <= late <= count
    asked.clear()
    run.save(tmp_path / "adapter")
    run.save(tmp_path / "adapter", overwrite=True)
    assert asked == [count] or (late == count and not asked)
    assert run.history.edit(1).seen.batch == count


def test_a_history_without_looks_is_read_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "edits.db"
    with session(path, model=adapted(restraint="clip", restrain_on="every", restrain_every=3)) as run:
        run.edit(REQUESTS)
        after = {r.id: answers_with(r.answer_after, "ten") for r in run.history.edits()}
    with sqlite3.connect(path) as connection:  # as version 0.1.0 wrote it
        for statement in statements(ADDED):
            kind, name = statement.split()[1:3]
            connection.execute(f"DROP {kind} {name}")
        connection.execute("DELETE FROM events WHERE kind = 'look'")
    connection.close()
    with History.read(path) as log:
        records = log.edits()
        assert all(record.seen is None for record in records)
        assert [r.state for r in records if r.id != 5] == ["applied" if after[r.id] else "lost" for r in records[:4]]
        assert history_report(log).level in ("near", "passed", "open")
    with resumed(path) as run:
        run.verify()
        assert agree(run) and all(record.seen for record in run.history.edits(standing=True))
        assert all(r.probability_taken == r.probability_after for r in run.history.edits(standing=True))


def look(history: History, **holds: bool) -> None:
    found = {int(name[1:]): Verification(" Old", 0.9 if own else 0.1, own) for name, own in holds.items()}
    history.record_looks(found, "restraint")


def test_a_report_is_not_good_while_edits_do_not_hold() -> None:
    from tests.reporting.test_odd_histories import growth_limit

    builder = Builder([growth_limit(3.0)]).batch({}, {}, {}, growth=1.1)
    assert builder.report().level == "good"
    look(builder.history, e1=True, e2=True, e3=False)
    report = builder.report()
    assert report.level == "near" and report.verdict.startswith("1 of 3 edits that stand does not hold")
    assert any("it gave the new answer to 2 of these 3" in sentence for sentence in report.summary)
    assert any("Edit 3 took, and the model no longer gives the new answer" in sentence for sentence in report.advice)
    look(builder.history, e1=True, e2=False, e3=False)
    report = builder.report()
    assert report.level == "passed" and "2 of 3 edits that stand do not hold" in report.verdict
    look(builder.history, e1=True, e2=True, e3=True)
    assert builder.report().level == "good" and "changed since" not in " ".join(builder.report().summary)
