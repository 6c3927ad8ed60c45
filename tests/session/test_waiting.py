"""Edits that did not take wait in the factors for the consolidation that is to reach them."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_prune.consolidation import run as consolidation
from peft_prune.editors import Edit
from peft_prune.editors.rome import ROME
from peft_prune.errors import EditFailedError, HistoryError
from peft_prune.reporting.log import EditLog
from peft_prune.session import EditSession, History
from peft_prune.session.consolidating import Consolidating
from peft_prune.spectral import LowRankUpdate, truncate
from tests.consolidation.scene import GENTLE, RESTRAINED, TEXTS, effective
from tests.editors.test_rome import EASY
from tests.session.scene import MODULE, REQUESTS, adapted, resumed, session

WEAK = "oats"


class _Weak(ROME):
    """The request about oats gets a tenth of its update, and nothing stronger helps."""

    def stronger(self) -> None:
        return None

    def compute(self, model: Any, tokenizer: Any, requests: Any, prepared: Any, earlier: Any = None) -> Edit:
        edit = super().compute(model, tokenizer, requests, prepared)
        scale = [0.1 if request.subject == WEAK else 1.0 for request in requests]
        update = edit.updates[MODULE]
        return dataclasses.replace(
            edit, updates={MODULE: LowRankUpdate(update.B * update.B.new_tensor(scale), update.A)}
        )


def dense(factors: Any) -> torch.Tensor:
    return factors[MODULE].B @ factors[MODULE].A


def waiting(history: Path | None = None, **options: Any) -> EditSession:
    given = {"on_failure": "consolidate", **options}
    return session(history, _Weak(EASY), adapted(**RESTRAINED), **given)


def test_an_edit_that_a_consolidation_reaches_has_taken(tmp_path: Path) -> None:
    with waiting(tmp_path / "edits.db") as run:
        results = run.edit(REQUESTS, batch_size=5)
        assert [result.status for result in results] == ["applied", "applied", "failed", "applied", "applied"]
        assert results[2].stands and "did not take" in results[2].reason
        found = run.consolidate(TEXTS, GENTLE)
        assert found.edits == (1, 2, 3, 4, 5) and found.margins[3] > 0
        late = run.results[2]
        assert late.status == "applied" and late.took and late.stands and late.reason is None
        record = run.history.edit(3)
        assert record.status == "failed" and record.probability_taken == pytest.approx(record.seen.probability)
        assert EditLog.of(run.history).state(record) == "applied"
        run.undo(3)
        assert run.results[2].status == "undone"


def test_what_was_reached_and_is_lost_again_is_lost_and_not_failed() -> None:
    with waiting() as run:
        run.edit(REQUESTS, batch_size=5)
        run.consolidate(TEXTS, GENTLE)
        run.restrain()  # back to F(raw), which never held it
        assert run.results[2].status == "lost" and "took, and was lost" in run.results[2].reason


def test_what_a_consolidation_does_not_reach_is_rolled_out() -> None:
    short = dataclasses.replace(GENTLE, steps=1, learning_rate=1e-5)
    with waiting() as run, waiting(on_failure="skip") as plain:
        run.edit(REQUESTS, batch_size=5)
        plain.edit(REQUESTS, batch_size=5)
        with pytest.warns(UserWarning, match="not reached under the bound"):
            found = run.consolidate(TEXTS, short)
        assert found.edits == (1, 2, 4, 5)
        result = run.results[2]
        assert result.status == "failed" and not result.took and not result.stands and "did not take" in result.reason
        assert run.history.edit(3).undone_reason == "did not take, nor when all were trained together"
        run.restrain()
        plain.restrain()
        one, other = effective(run), effective(plain)  # of its factors nothing is left
        assert bool((one.B @ one.A - other.B @ other.A).abs().max() < 1e-5)


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
@pytest.mark.parametrize("loses", [False, True])
def test_after_a_rolling_out_training_goes_on_from_what_was_trained_unless_that_loses_edits(
    tmp_path: Path, loses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edit 3 cannot be reached; the other four are trained on for a fifth of the steps, or anew."""
    begun: list[Any] = []
    done: list[Any] = []
    train = consolidation.train

    def trained(*given: Any) -> Any:
        begun.append((given[2], given[3]))
        if loses and len(begun) == 2:
            raise EditFailedError("consolidation: 3 of 4 edits hold")
        done.append(train(*given))
        return done[-1]

    monkeypatch.setattr(consolidation, "train", trained)
    short = dataclasses.replace(GENTLE, steps=10, learning_rate=1e-5)
    with waiting(tmp_path / "edits.db") as run:
        run.edit(REQUESTS, batch_size=5)
        found = run.consolidate(TEXTS, short)
        assert found.edits == (1, 2, 4, 5) and run.consolidated == 4
        assert [one.seen[-1].step for one in done] == [10, 10 if loses else 2]
        goes_on, bound = begun[1]
        assert bound[MODULE].rank == 4  # F(raw) of the four
        torch.testing.assert_close(dense(goes_on), dense({MODULE: truncate(done[0].factors[MODULE], rank=4)[0]}))
        assert (begun[-1][0] is begun[-1][1]) == loses
        after = effective(run)
        norms = [torch.linalg.matrix_norm(one.B.double() @ one.A.double(), 2) for one in (after, bound[MODULE])]
        assert norms[0] <= norms[1]
        assert [event["data"]["read"] for event in run.history.events() if event["kind"] == "consolidate"] == [5, 4]
    with resumed(tmp_path / "edits.db", _Weak(EASY)) as again:
        assert torch.equal(effective(again).B, after.B)
        again.undo(5)  # and an undo has what remains trained anew
        assert done[-1].seen[-1].step == 10 and begun[-1][0] is begun[-1][1]


def test_the_second_training_shows_how_far_it_is_as_the_first_does(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, run_of = [], Consolidating.run

    def run(self: Consolidating, texts: Any, settings: Any, progress: bool, *start: Any) -> Any:
        shown.append(progress)
        return run_of(self, texts, settings, progress, *start)

    monkeypatch.setattr(Consolidating, "run", run)
    with waiting() as session_, pytest.warns(UserWarning, match="not reached under the bound"):
        session_.edit(REQUESTS, batch_size=5)
        session_.consolidate(TEXTS, dataclasses.replace(GENTLE, steps=1, learning_rate=1e-5), progress=True)
        assert shown == [True, True] and not session_.shows_bars


def test_saving_without_a_consolidation_rolls_out_what_waits(tmp_path: Path) -> None:
    with waiting(tmp_path / "edits.db") as run:
        run.edit(REQUESTS, batch_size=5)
        assert run.history.standing == 5
    with resumed(tmp_path / "edits.db", _Weak(EASY)) as run:  # the history says what is waited for
        run.save(tmp_path / "adapter")
        assert [record.id for record in run.history.edits(standing=True)] == [1, 2, 4, 5]
        assert run.results[2].status == "failed"


def test_a_consolidation_that_is_not_there_when_it_is_saved_rolls_out_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session(None, _Weak(EASY), adapted(**RESTRAINED, consolidate="save"), on_failure="consolidate") as run:
        run.edit(REQUESTS, batch_size=5)
        monkeypatch.setattr(EditSession, "_consolidate", lambda *_, **__: None)
        run.save(tmp_path / "adapter")
        assert [record.id for record in run.history.edits(standing=True)] == [1, 2, 4, 5]


def test_an_edit_that_was_kept_before_there_were_looks_and_does_not_hold_has_not_taken(tmp_path: Path) -> None:
    with waiting(tmp_path / "edits.db", on_failure="keep") as run:
        run.edit(REQUESTS, batch_size=5)
    with sqlite3.connect(tmp_path / "edits.db") as log:
        log.execute("DELETE FROM looks")
    log.close()
    with resumed(tmp_path / "edits.db", _Weak(EASY)) as run:
        run.verify()
        run.verify()
        assert run.results[2].status == "failed" and not run.results[2].took


def test_what_an_edit_is_to_replace_stays_while_that_does_not_take_by_itself() -> None:
    with waiting() as run:
        run.edit([REQUESTS[0], dataclasses.replace(REQUESTS[4], subject="oats", target_new="sea")], batch_size=2)
        before = [record.id for record in run.history.edits(standing=True)]
        run.edit([REQUESTS[0]])
        run.edit([dataclasses.replace(REQUESTS[0], subject=WEAK, target_new="ten")])
        assert [record.id for record in run.history.edits(standing=True)] == [*before, 3]


def test_a_history_that_waits_for_something_unknown_is_refused(tmp_path: Path) -> None:
    with waiting(tmp_path / "edits.db") as run:
        run.edit(REQUESTS[:1])
        run.history.update_meta(on_failure="hope")
    with pytest.raises(HistoryError, match="its on_failure is 'hope', 'consolidate' is accepted"):
        resumed(tmp_path / "edits.db")
    with History.read(tmp_path / "edits.db") as log:
        assert json.loads(json.dumps(log.meta["on_failure"])) == "hope"
