"""Guards act as they say, and trackers get the figures."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from accelerate.tracking import GeneralTracker

from peft_prune.monitoring import (
    CONDITION_GROWTH,
    AbilityGuard,
    BatchReport,
    ConditionGuard,
    ProgressCallback,
    SessionCallback,
    TrackerCallback,
    batch_values,
)
from tests.session.scene import MODULE, REQUESTS, adapted, resumed, session
from tests.session.test_session import IDS, factors, layer_of, same

pytestmark = pytest.mark.filterwarnings("ignore:batch ")


def first_logit(model) -> float:
    return float(model(IDS).logits.abs().mean())


def kinds(run) -> list[str]:
    return [row["kind"] for row in run.history.table("events")]


def test_a_warning_says_which_layer_and_how_much_and_changes_nothing() -> None:
    run = session(callbacks=[ConditionGuard(1.001, action="warn")])
    with pytest.warns(UserWarning, match=rf"ConditionGuard: {MODULE}: the condition number is .* times the base's"):
        results = run.edit(REQUESTS[:2])
    assert all(result.applied for result in results) and kinds(run) == ["alert", "alert"]


def test_a_guard_can_have_the_restraint_applied() -> None:
    run = session(
        model=adapted(restraint="clip", restrain_on="merge"), callbacks=[ConditionGuard(1.5, action="restrain")]
    )
    run.edit(REQUESTS[:3])
    assert run.history.restraints()
    ((row),) = [row for row in run.history.table("figures") if row["batch"] == 3]
    update = layer_of(run).effective_update("default")
    assert row["delta_spectral_norm"] == pytest.approx(float(torch.linalg.matrix_norm(update.dense(), 2)), rel=1e-3)
    assert row["delta_spectral_norm"] <= row["sigma_max_base"] * 1.001
    messages = [event["data"] for event in run.history.table("events") if event["kind"] == "alert"]
    assert (
        any("even after the restraint" in message for message in messages)
        or row["condition_number"] < 1.5 * row["condition_number_base"]
    )


def test_the_history_knows_what_the_guards_of_the_last_call_watched(tmp_path) -> None:
    path = tmp_path / "edits.db"
    guards = [ConditionGuard(5.0, "restrain"), AbilityGuard(first_logit, 0.5), AbilityGuard(first_logit, math.inf)]
    with session(path, callbacks=guards) as run:
        assert "limits" not in run.history.meta
        run.edit(REQUESTS[:1])
        with run.model.disable_adapter():
            base = first_logit(run.model)
        growth, logit = run.history.meta["limits"]
    assert growth == {
        "figure": CONDITION_GROWTH, "value": 5.0, "base": 1.0, "higher_is_better": False, "action": "restrain"
    }  # fmt: skip
    assert logit == {
        "figure": "first_logit", "value": 0.5 * base, "base": base, "higher_is_better": True, "action": "warn"
    }  # fmt: skip
    lower = AbilityGuard(first_logit, 0.25, higher_is_better=False, name="loss")
    with resumed(path, callbacks=[lower]) as run:
        run.edit(REQUESTS[1:2])
        # what is not watched any more is still a limit
        assert [one["figure"] for one in run.history.meta["limits"]] == ["condition_growth", "first_logit", "loss"]
        assert run.history.meta["limits"][-1]["value"] == 1.25 * base


def test_a_guard_can_roll_a_batch_back(tmp_path) -> None:
    run = session(tmp_path / "edits.db")
    run.edit(REQUESTS[:2])
    before = factors(run)
    run.callbacks.append(ConditionGuard(1.001, action="rollback"))
    (result,) = run.edit(REQUESTS[2])
    assert result.status == "failed" and "rolled back by ConditionGuard" in result.reason and not result.stands
    assert same(factors(run), before)
    run.callbacks.clear()
    run.edit(REQUESTS[3])
    run.close()
    assert same(factors(resumed(tmp_path / "edits.db")), factors(run))


def test_a_rollback_brings_back_what_was_replaced() -> None:
    import dataclasses

    run = session()
    run.edit(REQUESTS[0])
    before = factors(run)
    run.callbacks.append(ConditionGuard(1.001, action="rollback"))
    run.edit(dataclasses.replace(REQUESTS[0], target_new="sea"))
    assert same(factors(run), before) and [r.id for r in run.history.edits(standing=True)] == [1]


def test_a_guard_can_stop_the_rest_and_says_so_for_every_request() -> None:
    run = session(callbacks=[ConditionGuard(1.001, action="stop")])
    results = run.edit(REQUESTS[:4], batch_size=2)
    assert [result.status for result in results] == ["applied", "applied", "skipped", "skipped"]
    assert "the session was stopped" in results[3].reason
    assert [record.status for record in run.history.edits()] == ["applied", "applied", "skipped", "skipped"]


def test_an_ability_guard_compares_with_the_base_itself() -> None:
    seen = []

    def probe(model) -> float:
        seen.append(first_logit(model))
        return seen[-1]

    run = session(callbacks=[AbilityGuard(probe, 1e-9, every=2, action="warn", higher_is_better=True)])
    with run.model.disable_adapter():
        base = first_logit(run.model)
    run.edit(REQUESTS[:4])
    assert len(seen) == 3 and seen[0] == base  # the base, and batches 2 and 4
    assert [row["value"] for row in run.history.table("measurements")] == seen[1:]
    assert run.history.table("measurements")[0]["name"] == "probe"


@pytest.mark.parametrize(
    ("higher", "value", "alerts"), [(True, 0.75, 1), (True, 0.77, 0), (False, 0.85, 1), (False, 0.83, 0)]
)
def test_the_drop_is_relative_to_the_base(higher: bool, value: float, alerts: int) -> None:
    values = iter([0.8, value])
    guard = AbilityGuard(lambda model: next(values), 0.05, higher_is_better=higher, name="accuracy")
    run = session(callbacks=[guard])
    run.edit(REQUESTS[0])
    assert kinds(run) == ["alert"] * alerts


def test_a_probe_that_gives_nan_alarms() -> None:
    values = iter([0.8, float("nan")])
    run = session(callbacks=[AbilityGuard(lambda model: next(values), 0.05)])
    run.edit(REQUESTS[0])
    assert kinds(run) == ["alert"]


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="max_growth: 1"):
        ConditionGuard(1)
    with pytest.raises(ValueError, match="action: 'panic' is not one of warn, restrain, rollback, stop"):
        ConditionGuard(2.0, action="panic")
    with pytest.raises(ValueError, match="max_drop: -1"):
        AbilityGuard(first_logit, -1)
    with pytest.raises(ValueError, match="every: 0"):
        AbilityGuard(first_logit, 0.1, every=0)
    run = session(callbacks=[AbilityGuard(lambda model: 0.0, 0.1, name="zero")])
    with pytest.raises(ValueError, match="zero gives 0"):
        run.edit(REQUESTS[0])
    with pytest.raises(ValueError, match="tracker: 'paper' is not one of"):
        TrackerCallback("paper")


class _Events(SessionCallback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def __getattribute__(self, name: str):
        if name.startswith("on_"):
            self.seen.append(name)
        return super().__getattribute__(name)


def test_callbacks_hear_of_every_event_in_order() -> None:
    events = _Events()
    run = session(model=adapted(restraint="clip", restrain_every=2), callbacks=[events])
    run.edit(REQUESTS[:2])
    run.undo(1)
    run.restrain()
    run.close()
    assert events.seen == [
        *("on_session_begin", "on_edit_begin"),
        *("on_batch_begin", "on_batch_end", "on_batch_begin", "on_batch_end", "on_restrain"),
        *("on_edit_end", "on_undo", "on_restrain", "on_session_end"),
    ]


def test_a_bar_shows_how_many_took(capsys) -> None:
    session(callbacks=[ProgressCallback()]).edit(REQUESTS[:2])
    shown = capsys.readouterr().err
    assert "2/2" in shown and "took=2" in shown


def test_tensorboard_gets_the_figures(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = session(callbacks=[TrackerCallback("tensorboard", "run", logging_dir=str(tmp_path))])
    run.edit(REQUESTS[:3])
    recorded = [row["condition_number"] for row in run.history.table("figures")]
    run.close()
    log = EventAccumulator(str(tmp_path / "run"))
    log.Reload()
    scalars = log.Scalars(f"condition_number/{MODULE}")
    assert [scalar.step for scalar in scalars] == [1, 2, 3]
    assert [scalar.value for scalar in scalars] == pytest.approx(recorded, rel=1e-5)


class _Own(GeneralTracker):
    name = "own"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict = {}
        self.logged: list[tuple[int, dict]] = []
        self.finished = False

    @property
    def tracker(self):
        return self.logged

    def store_init_configuration(self, values) -> None:
        self.settings = values

    def log(self, values, step=None, **options) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_any_tracker_of_accelerates_interface_will_do() -> None:
    tracker = _Own()
    run = session(callbacks=[TrackerCallback(tracker)])
    run.edit(REQUESTS[:2])
    run.close()
    assert tracker.settings["editor"] == "rome" and tracker.finished
    assert [step for step, _ in tracker.logged] == [1, 2]
    assert tracker.logged[0][1][f"rank/{MODULE}"] == 1 and tracker.logged[0][1]["success_rate"] == 1.0


def test_a_tracker_that_is_not_installed_is_named() -> None:
    if "dvclive" in sys.modules:
        pytest.skip("dvclive is installed")
    with pytest.raises(ValueError, match="tracker: 'dvclive' is not installed"):
        TrackerCallback("dvclive")


def test_values_that_are_not_finite_are_left_out() -> None:
    report = BatchReport(1, [], 0, {}, 0.5, measurements={"x": float("nan"), "y": 2.0})
    assert batch_values(report) == {"edits": 0.0, "success_rate": 0.0, "seconds": 0.5, "y": 2.0}
