"""Consolidation in a session: what it changes, what it leaves, and when it is done again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_prune import (
    AdapterError,
    EditFailedError,
    EditSession,
    History,
    HistoryError,
    InvalidRequestError,
    PruneEditConfig,
    SessionStateError,
    adapter_of,
)
from peft_prune.consolidation import run
from peft_prune.consolidation.training import _Training
from peft_prune.reporting.log import EditLog
from peft_prune.session.consolidating import Consolidating
from peft_prune.spectral import LowRankUpdate
from tests.consolidation.scene import GENTLE, TEXTS, edited, effective, fresh, layer_of
from tests.session.scene import MODULE, REQUESTS, resumed, session
from tests.tiny import willing

SHORT = replace(GENTLE, steps=10, look_every=5)
"""For what does not depend on how far training comes."""


def restrained(session: EditSession) -> LowRankUpdate:
    """F(raw) of what stands; the session stays as it is."""
    layer = layer_of(session)
    return layer._restrained("default", layer.raw_update("default"), None)[0]


def lost_of(session: EditSession) -> list[int]:
    return [record.id for record in session.history.edits(standing=True) if record.state == "lost"]


def same(one: LowRankUpdate, other: LowRankUpdate) -> bool:
    return torch.equal(one.B, other.B) and torch.equal(one.A, other.A)


@pytest.fixture(autouse=True)
def any_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short training may leave fewer edits than it found; what is looked at here does not depend on that."""
    monkeypatch.setattr("peft_prune.consolidation.run.require_no_loss", lambda *_: None)


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_more_edits_hold_within_the_norm_that_the_restraint_left(tmp_path: Path) -> None:
    with edited(tmp_path / "edits.db") as own:
        own.model.restrain()
        limit, raw = effective(own), layer_of(own).raw_update("default")
        before = sum(one.holds for one in own.verify().values())
        found = own.consolidate(TEXTS, GENTLE)
        after = own.verify()
        assert sum(one.holds for one in after.values()) > before
        assert found.edits == (1, 2, 3, 4, 5) and found.steps == 60
        assert {edit for edit, margin in found.margins.items() if margin > 0} == {
            edit for edit, one in after.items() if one.holds
        }
        trained = effective(own)
        norms = [torch.linalg.matrix_norm(u.B.double() @ u.A.double(), 2) for u in (trained, limit)]
        assert norms[0] <= norms[1]
        assert same(layer_of(own).raw_update("default"), raw)
        assert own.history.standing == 5 and not own.model.restraint_is_pending()


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_a_resumed_session_has_the_same_factors_bit_for_bit(tmp_path: Path) -> None:
    with edited(tmp_path / "edits.db") as own:
        own.consolidate(TEXTS, SHORT)
        trained = effective(own)
    with resumed(tmp_path / "edits.db") as again:
        assert same(effective(again), trained) and layer_of(again).consolidated_edits("default") == 5
        # and the same seed gives them once more
        again.consolidate(TEXTS, SHORT)
        assert same(effective(again), trained)
        again.consolidate(TEXTS, SHORT, seed=1)
        assert not same(effective(again), trained)
    log = History.read(tmp_path / "edits.db")
    looked_at = adapter_of(log, willing("gpt2"))
    assert dict(looked_at.base_model.edited_layers())[MODULE].consolidated_edits("default") == 5
    said = [change.what for change in EditLog.of(log).changes]
    assert sum(what.startswith("5 edits consolidated in 10 steps: ") for what in said) == 3


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_an_undo_gives_what_consolidating_the_others_alone_gives(tmp_path: Path) -> None:
    with edited(tmp_path / "edits.db") as own:
        own.consolidate(TEXTS, SHORT)
        own.undo(2)
        undone = effective(own)
        assert layer_of(own).consolidated_edits("default") == 4
    with edited(tmp_path / "others.db") as other:
        other.undo(2)
        other.consolidate(TEXTS, SHORT)
        assert same(effective(other), undone)
    with resumed(tmp_path / "edits.db") as again:
        assert same(effective(again), undone)


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_edits_are_added_beside_it_and_a_restraint_is_followed_by_another(tmp_path: Path) -> None:
    with fresh(tmp_path / "edits.db", restrain_on="every", restrain_every=2) as own:
        own.edit(REQUESTS[:3])
        own.consolidate(TEXTS, SHORT)
        trained, kept = effective(own), own.history.consolidation()
        own.edit(REQUESTS[3])
        beside = effective(own)
        assert torch.equal(beside.B[:, : trained.rank], trained.B) and beside.rank == trained.rank + 1
        assert layer_of(own).consolidated_edits("default") == 3
    with resumed(tmp_path / "edits.db") as own:
        assert same(effective(own), beside)
        own.edit(REQUESTS[4])  # the second since: the schedule restrains
        assert layer_of(own).consolidated_edits("default") == own.history.standing == 5
        assert kept is not None and own.history.consolidation().edits != kept.edits  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_restraining_ends_it_and_gives_f_of_the_raw_sum(tmp_path: Path) -> None:
    with edited(tmp_path / "edits.db") as own:
        own.model.restrain()
        restrained = effective(own)
        own.consolidate(TEXTS, SHORT)
        own.restrain()
        assert same(effective(own), restrained)
        own.undo(1)
        assert layer_of(own).consolidated_edits("default") == 0 and own.history.consolidation() is None


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
@pytest.mark.parametrize("schedule", [{"consolidate": "save"}, {"consolidate": "every", "consolidate_every": 3}])
def test_the_schedule_consolidates(tmp_path: Path, schedule: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft_prune.session.session.ConsolidationSettings", lambda: replace(SHORT, texts=6))
    with fresh(tmp_path / "edits.db", **schedule) as own:
        own.edit(REQUESTS)
        done = layer_of(own).consolidated_edits("default")
        assert done == (0 if schedule["consolidate"] == "save" else 3)
        assert own.history.unconsolidated == 5 - done and (own.history.consolidated_batch == 0) == (done == 0)
        own.save(tmp_path / "adapter")
        assert layer_of(own).consolidated_edits("default") == 5
        events = [event["data"]["edits"] for event in own.history.events() if event["kind"] == "consolidate"]
        assert events == ([5] if schedule["consolidate"] == "save" else [3, 5])


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
@pytest.mark.parametrize("window", [0, 1, 9, None])
def test_a_window_goes_on_from_what_was_trained_and_reads_new_edits_and_some_before(
    tmp_path: Path, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_prune.session.session.ConsolidationSettings", lambda: replace(SHORT, texts=6))
    begun = []
    train = run.train
    monkeypatch.setattr(run, "train", lambda *given: begun.append(given[2][MODULE]) or train(*given))
    schedule: dict[str, Any] = {"consolidate": "every", "consolidate_every": 3, "consolidate_window": window}
    schedule["restrain_on"] = "merge"
    with fresh(tmp_path / "edits.db", **schedule) as own:
        own.edit(REQUESTS[:3])
        trained = effective(own)
        own.edit(REQUESTS[3:])
        beside, lost = effective(own), lost_of(own)
        own.save(tmp_path / "adapter")
        read = [3, 5 if window is None else min(5, 2 + len(lost) + window)]
        told = [event["data"] for event in own.history.events() if event["kind"] == "consolidate"]
        assert [one["read"] for one in told] == read and [one["edits"] for one in told] == [3, 5]
        assert layer_of(own).consolidated_edits("default") == 5
        assert torch.equal(beside.B[:, : trained.rank], trained.B)
        assert same(begun[1], beside) == (window is not None)
        norms = [torch.linalg.matrix_norm(u.B.double() @ u.A.double(), 2) for u in (effective(own), restrained(own))]
        assert norms[0] <= norms[1]
        after = effective(own)
    said = [change.what for change in EditLog.of(History.read(tmp_path / "edits.db")).changes]
    assert f"{read[1]} of them were read, of which " in "; ".join(said) or read[1] == 5
    with resumed(tmp_path / "edits.db") as again:
        assert same(effective(again), after) and again.workspace.config.consolidate_window == window
        again.undo(5)  # what remains is consolidated anew, all of it
        assert [e["data"]["read"] for e in again.history.events() if e["kind"] == "consolidate"] == [*read, 4]
        assert same(begun[-1], restrained(again))


WINDOWS: dict[str, Any] = {"restrain_on": "merge", "consolidate": "every", "consolidate_every": 3}


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_a_window_of_an_adapter_of_limited_rank_has_that_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft_prune.session.session.ConsolidationSettings", lambda: replace(SHORT, texts=6))
    with fresh(consolidate_window=1, max_rank=2, **WINDOWS) as own:
        own.edit(REQUESTS)
        own.save(tmp_path / "adapter")
        assert effective(own).rank == 2 and layer_of(own).consolidated_edits("default") == 5
        saved = effective(own)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["consolidated"] == 5
    again = PeftModel.from_pretrained(willing("gpt2"), str(tmp_path / "adapter"))
    loaded = dict(again.base_model.edited_layers())[MODULE].effective_update("default")
    torch.testing.assert_close(loaded.B @ loaded.A, saved.B @ saved.A)


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_a_window_keeps_nothing_about_subjects_of_edits_that_it_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("peft_prune.session.consolidating.LOST", "")
    passages = run.neighbor_passages
    monkeypatch.setattr(
        run, "neighbor_passages", lambda *of, **named: given.append(named["standing"]) or passages(*of, **named)
    )
    with fresh(restrain_on="merge") as own:
        own.edit(REQUESTS[:4])
        own.consolidate(TEXTS, SHORT)
        own.edit(REQUESTS[4])
        own.consolidate(TEXTS, SHORT, window=0)
    assert given[0] == [] and [one.subject for one in given[1]] == [one.subject for one in REQUESTS[:4]]


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_a_window_without_new_edits_is_refused_and_asked_for_once_is_no_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fresh(restrain_on="merge", consolidate="save") as own:
        own.edit(REQUESTS[:3])
        own.consolidate(TEXTS, SHORT)
        trained = effective(own)
        with pytest.raises(SessionStateError, match="window: no edit has been added since the last consolidation"):
            own.consolidate(TEXTS, SHORT, window=2)
        assert same(effective(own), trained)
        own.edit(REQUESTS[3])
        lost = lost_of(own)
        assert lost and own.consolidate(TEXTS, SHORT, window=0).edits == (*lost, 4)
        assert own._kept_settings.window is None


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_texts_that_the_base_wrote_are_written_anew_for_a_window_and_for_more_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(run, "own_texts", lambda model, tokenizer, count, *_, **__: written.append(count) or TEXTS)
    quick = replace(SHORT, phrasings=0, neighbors=0)
    with fresh(tmp_path / "edits.db", restrain_on="merge") as own:
        own.edit(REQUESTS[:3])
        own.consolidate(None, replace(quick, texts=6))
        assert len(written) == 1
        own.undo(3)  # done again with the same ones
        assert len(written) == 1
        own.edit(REQUESTS[3])
    with resumed(tmp_path / "edits.db") as own:
        own.consolidate(own._kept_texts, replace(quick, texts=6, window=1))
        own.consolidate(own._kept_texts, replace(quick, texts=9))
        own.consolidate(TEXTS[:5], replace(quick, texts=9))
        own.consolidate(own._kept_texts, replace(quick, texts=9))
    assert written == [6, 6, 9]


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_what_windows_do_not_reach_is_rolled_out_before_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft_prune.session.session.ConsolidationSettings", lambda: replace(SHORT, texts=6))
    config = PruneEditConfig(layers_to_transform=[1], restraint="log", alpha=1.5, consolidate_window=1, **WINDOWS)
    tuned = get_peft_model(willing("gpt2"), config).eval()
    with session(tmp_path / "edits.db", model=tuned, on_failure="consolidate") as own:
        own.edit(REQUESTS)
        waiting = [record.id for record in own._waiting()]
        own.save(tmp_path / "adapter")
        assert own.history.standing == 5 - len(waiting)
        undone = [event["data"] for event in own.history.events() if event["kind"] == "undo"]
        assert [edit for one in undone for edit in one["edits"]] == waiting
        assert {one["reason"] for one in undone} <= {"did not take, nor when trained with others"}


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
@pytest.mark.parametrize(
    ("least", "given", "edits"),
    [
        (5, {}, 5),
        (6, {}, 0),
        (5, {"restraint": "none"}, 0),
        (1, {"restrain_on": "compounding", "restrain_every": 1}, 0),
    ],
    ids=["enough", "too few", "unrestrained", "compounding"],
)
def test_by_itself_it_is_done_where_there_are_many_edits_and_a_restraint(
    tmp_path: Path, least: int, given: dict[str, Any], edits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_prune.session.session.ConsolidationSettings", lambda: replace(SHORT, texts=6))
    monkeypatch.setattr("peft_prune.tuner.config.CONSOLIDATED_FROM", least)
    with fresh(consolidate="auto", **given) as own:
        own.edit(REQUESTS)
        own.save(tmp_path / "adapter")
        assert layer_of(own).consolidated_edits("default") == edits


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_whoever_asks_for_bars_sees_them_on_the_schedule_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_prune.session.session.ConsolidationSettings", lambda: replace(SHORT, texts=6))
    shown: list[bool] = []
    run = Consolidating.run
    monkeypatch.setattr(Consolidating, "run", lambda self, *given: shown.append(given[2]) or run(self, *given))
    with fresh(consolidate="save") as own:
        own.edit(REQUESTS)
        own.shows_bars = True
        own.save(tmp_path / "adapter")
        own.undo([2])
        own.shows_bars = False
        own.undo([3])
    assert shown == [True, True, False]


@pytest.mark.parametrize("schedule", ["auto", "save"])
def test_one_that_would_lose_edits_is_left_out_unless_it_was_asked_for(
    tmp_path: Path, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losing(*_: Any) -> None:
        raise EditFailedError("consolidation: 1 of 5 edits hold after 2 steps")

    monkeypatch.setattr("peft_prune.consolidation.run.require_no_loss", losing)
    monkeypatch.setattr("peft_prune.session.session.ConsolidationSettings", lambda: replace(SHORT, texts=6))
    monkeypatch.setattr("peft_prune.tuner.config.CONSOLIDATED_FROM", 1)
    with fresh(consolidate=schedule, restrain_on="merge") as own:
        own.edit(REQUESTS)
        if schedule == "save":
            with pytest.raises(EditFailedError, match="1 of 5 edits hold"):
                own.save(tmp_path / "adapter")
            assert not (tmp_path / "adapter").exists() and own.model.restraint_is_pending()
            return
        with pytest.warns(UserWarning, match="saved restrained and not consolidated"):
            own.save(tmp_path / "adapter")
        assert layer_of(own).consolidated_edits("default") == 0 and not own.model.restraint_is_pending()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["restrained"] and config["consolidated"] == 0


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_a_saved_adapter_holds_the_trained_factors_and_says_so(tmp_path: Path) -> None:
    with edited(tmp_path / "edits.db") as own:
        own.consolidate(TEXTS, SHORT)
        ids = torch.arange(9)[None]
        logits = own.model(ids).logits
        own.save(tmp_path / "adapter", also_lora=True)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["consolidated"], config["edits"]) == (5, 5)
    assert "consolidation: all 5 edits were trained together" in (tmp_path / "adapter" / "README.md").read_text()
    loaded = PeftModel.from_pretrained(willing("gpt2"), str(tmp_path / "adapter"))
    assert torch.allclose(loaded(ids).logits, logits, atol=1e-4)
    lora = PeftModel.from_pretrained(willing("gpt2"), str(tmp_path / "adapter" / "lora"))
    assert torch.allclose(lora(ids).logits, logits, atol=1e-4)
    with pytest.raises(AdapterError, match="raw ones are not in the file"):
        loaded.base_model.restrain()


def test_an_adapter_without_says_none(tmp_path: Path) -> None:
    with edited(tmp_path / "edits.db") as own:
        own.save(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["consolidated"] == 0
    assert "consolidation: none" in (tmp_path / "adapter" / "README.md").read_text()


def test_what_goes_wrong_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with edited(tmp_path / "edits.db") as own:
        before, pending = effective(own), own.model.restraint_is_pending()
        with pytest.raises(EditFailedError, match="NaN or Inf, so nothing has changed"):
            own.consolidate(TEXTS, SHORT, learning_rate=1e30, bound=False)
        with pytest.raises(InvalidRequestError, match="none of the 1 retention texts has two tokens"):
            own.consolidate([""], SHORT)

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(_Training, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own.consolidate(TEXTS, SHORT)
        assert same(effective(own), before) and own.model.restraint_is_pending() == pending
        assert own.history.consolidation() is None and own.history.restraints() == []
        with pytest.raises(ValueError, match="pace: is no setting of consolidation"):
            own.consolidate(TEXTS, pace=1)


def test_a_history_without_edits_and_factors_without_raw_ones_are_refused(tmp_path: Path) -> None:
    with edited(tmp_path / "edits.db") as own:
        own.undo([1, 2, 3, 4, 5])
        with pytest.raises(SessionStateError, match="it holds no request that stands"):
            own.consolidate(TEXTS, SHORT)
    with pytest.raises(ValueError, match="consolidate: 'every' starts from F of the raw factors"):
        PruneEditConfig(consolidate="every", restrain_on="compounding")
    with pytest.raises(ValueError, match="consolidate: 'sometimes' is not one of demand, auto, save, every"):
        PruneEditConfig(consolidate="sometimes")  # type: ignore[arg-type]
    with fresh(restrain_on="compounding", restrain_every=1) as own:
        own.edit(REQUESTS[0])
        with pytest.raises(AdapterError, match="is not F of the raw factors"):
            own.consolidate(TEXTS, SHORT)


def test_an_edit_that_the_bound_does_not_let_be_reached_is_named_with_its_margin(tmp_path: Path) -> None:
    with edited(tmp_path / "edits.db") as own:
        with pytest.warns(UserWarning, match=r"not reached under the bound: edit \d \(margin -\d"):
            found = own.consolidate(TEXTS, SHORT, steps=1)
        assert found.unreached and set(found.unreached) <= set(found.edits)


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_a_damaged_consolidation_is_named(tmp_path: Path) -> None:
    with edited(tmp_path / "edits.db") as own:
        own.consolidate(TEXTS, SHORT)
        for column, value in (("settings", '{"pace": 1}'), ("edits", '{"1": "a"}'), ("texts", "[1]"), ("data", b"no")):
            kept = own.history._execute(f"SELECT {column} FROM consolidations").fetchone()[0]
            own.history._execute(f"UPDATE consolidations SET {column} = ?", (value,))
            with pytest.raises(HistoryError, match="its consolidation"):
                own.history.consolidation()
            own.history._execute(f"UPDATE consolidations SET {column} = ?", (kept,))


def test_what_the_model_finds_for_an_edit_is_kept_and_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def written(model: Any, tokenizer: Any, requests: Any, seed: int, progress: bool) -> list[tuple[str, ...]]:
        asked.append([request.subject for request in requests])
        return [("note of {} is", f"tea {number} {{}}") for number in range(len(requests))]

    monkeypatch.setattr("peft_prune.consolidation.run.written_phrasings", written)
    with edited(tmp_path / "edits.db") as own:
        own.consolidate(TEXTS, SHORT)
        first, kept = effective(own), own.history.phrasings()
        assert kept == {number: ("note of {} is", f"tea {number - 1} {{}}") for number in range(1, 6)}
        own.consolidate(TEXTS, SHORT)
        assert same(effective(own), first)
        assert asked == [[request.subject for request in REQUESTS], []]
        own.history._execute("UPDATE phrasings SET prompts = ? WHERE edit = 2", ('["no place"]',))
        with pytest.raises(HistoryError, match=r"phrasings of edit 2 are \['no place'\], a list of prompts with one"):
            own.history.phrasings()


def test_a_consolidation_from_before_there_were_phrasings_is_done_again_without(tmp_path: Path) -> None:
    with edited(tmp_path / "edits.db") as own:
        own.consolidate(TEXTS, SHORT)
        told = json.loads(own.history._execute("SELECT settings FROM consolidations").fetchone()[0])
        old = {name: value for name, value in told.items() if name not in ("phrasings", "neighbors")}
        own.history._execute("UPDATE consolidations SET settings = ?", (json.dumps(old),))
        found = own.history.consolidation()
        assert found is not None and (found.settings.phrasings, found.settings.neighbors) == (0, 0)
