"""Guards act as they say, and trackers get the figures."""

from __future__ import annotations

import math
import re
import sys

import pytest
import torch
from accelerate.tracking import GeneralTracker
from peft import get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.editors import ROME, get_editor
from peft_prune.errors import HistoryError
from peft_prune.monitoring import (
    CONDITION_GROWTH,
    AbilityGuard,
    BatchReport,
    ConditionGuard,
    NormGuard,
    OutputGuard,
    ProgressCallback,
    SessionCallback,
    TrackerCallback,
    batch_values,
)
from peft_prune.session import EditSession
from tests.editors.test_rome import EASY
from tests.session.scene import MODULE, REQUESTS, adapted, moments, resumed, session
from tests.session.test_session import IDS, factors, layer_of, same
from tests.talking import spaced_tokenizer
from tests.tiny import willing

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
    assert "2 of 2" in shown and "took=2" in shown


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


def test_the_norm_guard_acts_on_the_largest_singular_value_of_the_update() -> None:
    run = session(callbacks=[NormGuard(0.5, action="warn")])
    with pytest.warns(UserWarning, match=rf"NormGuard: {MODULE}: ‖ΔW‖₂ is .* times σmax\(W₀\), 0.5 is allowed"):
        run.edit(REQUESTS[:2])
    said = [float(re.search(r"is ([\d.e+-]+) times", row["data"]["message"])[1]) for row in run.history.events()]
    layer = layer_of(run)
    dense = layer.effective_update("default").dense().double()
    share = float(torch.linalg.matrix_norm(dense, 2) / torch.linalg.matrix_norm(layer.get_base_weight().double(), 2))
    assert said[-1] == pytest.approx(share, rel=5e-3) and share > 0.5
    assert run.history.meta["limits"][0]["figure"] == "update_norm" and run.history.meta["limits"][0]["base"] == 0.0
    quiet = session(callbacks=[NormGuard(2 * share)])
    quiet.edit(REQUESTS[:2])
    assert "alert" not in kinds(quiet)


def test_the_output_guard_acts_on_the_change_of_ordinary_outputs() -> None:
    run = session(callbacks=[OutputGuard(1e-6, action="rollback")])
    with pytest.warns(UserWarning, match="OutputGuard"):
        (result,) = run.edit(REQUESTS[0])
    assert result.status == "failed" and "rolled back by OutputGuard" in result.reason
    own = session()
    own.edit(REQUESTS[0])
    layer, moment = layer_of(own), moments().moments[MODULE].double()
    delta, base = layer.effective_update("default").dense().double(), layer.get_base_weight().T.double()
    share = float(torch.trace(delta @ moment @ delta.T) / torch.trace(base @ moment @ base.T))
    assert own.figures()[MODULE].output_perturbation == pytest.approx(share, rel=1e-3)
    quiet = session(callbacks=[OutputGuard(1.1 * share)])
    assert quiet.edit(REQUESTS[0])[0].applied and "alert" not in kinds(quiet)


def test_the_output_guard_needs_the_second_moment_of_every_layer(tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"statistics: OutputGuard needs the second moment of {MODULE}"):
        EditSession(
            adapted(), spaced_tokenizer(), ROME(EASY, mom2_adjustment=False), history=tmp_path / "edits.db",
            callbacks=[OutputGuard(0.1)],
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_over_a_singular_base_the_condition_guard_says_so_once_and_the_norm_guard_acts() -> None:
    model = willing("gpt2")
    weight = dict(model.named_modules())[MODULE].weight
    with torch.no_grad():
        weight[:, -1] = 0.0  # Conv1D keeps (in, out): one output is always zero
    wrapped = get_peft_model(model, PruneEditConfig(layers_to_transform=[1], restraint="none")).eval()
    guards = [ConditionGuard(2.0, action="stop"), NormGuard(1e-3, action="rollback")]
    run = session(model=wrapped, callbacks=guards)
    with pytest.warns(UserWarning, match="the base is singular"):
        first = run.edit(REQUESTS[0])
    second = run.edit(REQUESTS[1])
    assert math.isinf(run.figures()[MODULE].condition_number_base)
    assert [one.status for one in first + second] == ["failed", "failed"]
    messages = [event["data"]["message"] for event in run.history.events() if event["kind"] == "alert"]
    assert sum("the base is singular" in message for message in messages) == 1
    assert sum("‖ΔW‖₂ is" in message for message in messages) == 2 and layer_of(run).rank("default") == 0


@pytest.mark.parametrize(("guard", "name"), [(NormGuard, "max_norm"), (OutputGuard, "max_output_change")])
def test_a_limit_that_is_no_number_above_zero_is_named(guard, name: str) -> None:
    for value in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{name}: .* must be a number above 0"):
            guard(value)


class _Interrupt(SessionCallback):
    def on_batch_end(self, session, report) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("way", ["interrupted", "rolled back", "not written"])
def test_no_key_of_a_batch_that_is_taken_out_is_left_for_the_next_one(way: str, tmp_path) -> None:
    """MEMIT with the keys of earlier edits: the next edit must be computed as if the batch had never been."""
    editor = get_editor(
        "memit", layers=(1,), v_num_grad_steps=60, clamp_norm_factor=30.0, mom2_update_weight=10.0,
        context_lengths=((3, 2),),
    )  # fmt: skip
    run, plain = session(tmp_path / "edits.db", editor=editor), session(editor=editor)
    for one in (run, plain):
        assert all(result.took for result in one.edit(REQUESTS[:2]))
    keys, before = run.workspace.keys[MODULE].clone(), factors(run)
    if way == "interrupted":
        run.callbacks.append(_Interrupt())
        with pytest.raises(KeyboardInterrupt):
            run.edit(REQUESTS[2:4], batch_size=2)
    elif way == "rolled back":
        run.callbacks.append(NormGuard(1e-6, action="rollback"))
        assert [one.status for one in run.edit(REQUESTS[2:4], batch_size=2)] == ["failed", "failed"]
    else:
        run.history._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(HistoryError, match="readonly"):
            run.edit(REQUESTS[2:4], batch_size=2)
        run.history._connection.execute("PRAGMA query_only = OFF")
    run.callbacks.clear()
    assert torch.equal(run.workspace.keys[MODULE], keys) and keys.shape == (2, 64) and same(factors(run), before)
    # the keys are what the next update is computed with: without the stale ones it is the same, to the bit
    assert run.edit(REQUESTS[4])[0].took and plain.edit(REQUESTS[4])[0].took
    assert same(factors(run), factors(plain))
    assert torch.equal(run.workspace.keys[MODULE], plain.workspace.keys[MODULE])
