"""Attribution, the choice of the restraint, and strengths of single edits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from peft_prune import PruneEditConfig
from peft_prune.errors import SessionStateError
from peft_prune.session import History, attribute, calibrate_strengths, tune_restraint
from peft_prune.session.tuning import SETTINGS
from tests.session.scene import MODULE, REQUESTS, adapted, resumed, session
from tests.session.test_session import IDS, factors, layer_of, same


def edited(tmp_path=None, **config):
    run = session(tmp_path, model=adapted(**{"restraint": "clip", "restrain_on": "merge", **config}))
    run.edit(REQUESTS)
    return run


def closeness(run):
    """How near a model is to the base on some inputs: one number for each, higher being better."""
    with run.model.disable_adapter():
        base = run.model(IDS).logits

    def probe(model) -> list[float]:
        return (-(model(IDS).logits - base).abs().mean(-1)[0]).tolist()

    return probe


def test_shares_are_those_of_the_dense_svd_and_sum_to_one(tmp_path) -> None:
    run = edited(tmp_path / "edits.db")
    run.undo(2)
    found = attribute(History.read(tmp_path / "edits.db"), MODULE, directions=3)
    parts = {edit: run.history.factors(edit).updates[MODULE].to(torch.float64).dense() for edit in found.edits}
    U, s, Vh = torch.linalg.svd(sum(parts.values()))
    assert found.edits == (1, 3, 4, 5)
    assert torch.allclose(found.singular_values.double(), s[:3], rtol=1e-4)
    for row, edit in enumerate(found.edits):
        expected = [float(U[:, i] @ parts[edit] @ Vh[i] / s[i]) for i in range(3)]
        assert found.shares[row].tolist() == pytest.approx(expected, abs=1e-4)
    assert torch.allclose(found.shares.sum(0), torch.ones(3), atol=1e-4)
    leading = found.leading(2)
    opposed = replace(found, shares=found.shares * torch.tensor([-9.0, 1.0, 1.0, 1.0])[:, None])
    assert opposed.leading(1) == [(1, pytest.approx(-9 * float(found.shares[0, 0])))]
    assert len(leading) == 2 and leading[0][1] >= leading[1][1] == sorted(found.shares[:, 0].tolist())[-2]
    with pytest.raises(ValueError, match="no edit that stands changes 'lm_head'"):
        attribute(run.history, "lm_head")


def test_a_sweep_leaves_the_adapter_as_it_was_unless_it_may_choose() -> None:
    run = edited()
    before, logits = factors(run), run.model(IDS).logits
    found = tune_restraint(run, closeness(run), choose=False, progress=False)
    assert same(factors(run), before) and torch.equal(run.model(IDS).logits, logits)
    assert run.config.restraint == "clip" and run.config.restraint_pattern is None
    assert {point.label for point in found.points} == set(SETTINGS) and found.reference.label == "clip"


def test_points_are_what_the_model_gives_under_their_restraint() -> None:
    run = edited()
    found = tune_restraint(run, closeness(run), settings=["none", "log:1.5", "scale"], choose=False, progress=False)
    assert [point.label for point in found.points] == ["clip", "none", "log:1.5", "scale"]
    for point in found.points:
        run.choose_restraints(point.restraints)
        held = [one.holds for one in run.verify().values()]
        assert point.success == sum(held) / len(held)
        scores = closeness(run)(run.model)
        assert point.retention == pytest.approx(sum(scores) / len(scores))
        assert point.condition_number == pytest.approx(run.figures()[MODULE].condition_number)


def test_the_recommended_setting_loses_nothing_against_the_configured_one_beyond_its_interval() -> None:
    run = edited(restraint="none")
    found = tune_restraint(run, closeness(run), progress=False)
    best, reference = found.recommended, found.reference
    assert reference.label == "none" and best.is_safe
    assert best.success > reference.success or best.retention > reference.retention or best == reference
    for point in found.points:
        beaten = any(
            o.success >= point.success
            and o.retention >= point.retention
            and (o.success, o.retention) != (point.success, point.retention)
            for o in found.points
        )
        assert point.on_front is not beaten
    assert [p.success for p in found.front] == sorted((p.success for p in found.front), reverse=True)


def test_the_recommended_setting_has_the_largest_sum_of_gains_by_the_stated_rule() -> None:
    run = edited(restraint="log", alpha=1.5)
    found = tune_restraint(run, closeness(run), choose=False, progress=False)
    assert {"log:1.45", "log:1.475", "log:1.525", "log:1.55"} <= {point.label for point in found.points}

    def gain(point) -> float:
        total = 0.0
        for loss, half in (point.success_loss, point.retention_loss):
            unit = loss / half if half else loss
            total += -2 * unit if unit > 0 else -unit
        return total

    safe = [p for p in found.points if all(loss <= half for loss, half in (p.success_loss, p.retention_loss))]
    assert found.reference in safe and gain(found.recommended) == pytest.approx(max(gain(point) for point in safe))


def test_the_choice_is_in_the_configuration_the_adapter_and_the_history(tmp_path) -> None:
    run = edited(tmp_path / "edits.db", restraint="none")
    found = tune_restraint(run, closeness(run), settings=["linear", "clip"], progress=False)
    label = found.recommended.label
    assert run.config.restraint == label.partition(":")[0]
    expected = adapted(restraint=run.config.restraint, alpha=run.config.alpha, restrain_on="merge")
    for record in run.history.edits(standing=True):
        expected.add_edits(run.history.factors(record.id).updates, on_schedule=False)
    expected.restrain()
    assert torch.allclose(run.model(IDS).logits, expected(IDS).logits, atol=1e-5)
    assert [row["kind"] for row in run.history.table("events") if row["kind"] != "look"] == ["tune"]
    run.close()
    again = resumed(tmp_path / "edits.db")
    assert same(factors(again), factors(run)) and again.config.restraint == run.config.restraint


def test_layers_may_have_restraints_of_their_own(tmp_path) -> None:
    from peft import PeftModel, get_peft_model

    from tests.tiny import random_update, tiny_gpt2

    model = get_peft_model(tiny_gpt2(), PruneEditConfig(restrain_on="merge", layers_to_transform=[0, 1])).eval()
    names = [name for name, _ in model.edited_layers()]
    model.add_edits({name: random_update((16, 64), rank=3, scale=3.0, seed=i) for i, name in enumerate(names)})
    model.set_restraints({names[0]: "clip", names[1]: "log:1.5"})
    assert list(model.peft_config["default"].restraint_pattern.values()) == ["clip", "log:1.5"]
    model.restrain()
    for name, layer in model.edited_layers():
        m = layer.sigma_max_base()
        s = torch.linalg.svdvals(layer.raw_update("default").to(torch.float64).dense())
        wanted = (
            s.clamp(max=m)
            if name == names[0]
            else torch.minimum(
                torch.where(s > m, (s.log() - torch.tensor(m).log()) / torch.tensor(1.5).log() + m, s), s
            )
        )
        found = torch.linalg.svdvals(layer.effective_update("default").to(torch.float64).dense())
        assert torch.allclose(found[:3], wanted[:3], rtol=1e-4)
    model.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(tiny_gpt2(), str(tmp_path / "adapter"))
    assert again.peft_config["default"].restraint_pattern == model.peft_config["default"].restraint_pattern
    with pytest.raises(ValueError, match="restraints: for x"):
        model.set_restraints({"x": "clip"})
    with pytest.raises(ValueError, match=r"restraint_pattern: 'h\.0': 'log:half'"):
        PruneEditConfig(restraint_pattern={"h.0": "log:half"})


def test_a_sweep_by_layer_tries_each_layer_by_itself() -> None:
    from peft import get_peft_model

    from tests.talking import spaced_tokenizer
    from tests.tiny import random_update, willing

    model = get_peft_model(willing("gpt2"), PruneEditConfig(restrain_on="merge", layers_to_transform=[0, 1])).eval()
    names = [name for name, _ in model.edited_layers()]
    model.add_edits({name: random_update((16, 64), rank=2, scale=2.0, seed=i) for i, name in enumerate(names)})
    probes = {"requests": REQUESTS, "tokenizer": spaced_tokenizer(), "progress": False}
    found = tune_restraint(
        model, lambda m: -float(m(IDS).logits.std()), settings=["none", "clip"], groups="layer", **probes
    )
    labels = {point.label for point in found.points}
    assert {"log:1.2", "none", "clip"} <= labels and any("," in label for label in labels)
    config = model.peft_config["default"]
    assert [config.restraint_of(name).name for name in names] == [
        word.partition(":")[0] for word in found.recommended.restraints.values()
    ]
    with pytest.raises(ValueError, match="groups: 'h' is not adapted"):
        tune_restraint(model, lambda m: 0.0, groups=[["h"]], **probes)
    with pytest.raises(ValueError, match="groups: 'some'"):
        tune_restraint(model, lambda m: 0.0, groups="some", **probes)


def test_an_adapter_without_its_raw_factors_cannot_be_swept(tmp_path) -> None:
    from peft import PeftModel

    from tests.talking import spaced_tokenizer
    from tests.tiny import willing

    run = edited()
    run.save(tmp_path / "adapter")
    model = PeftModel.from_pretrained(willing("gpt2"), str(tmp_path / "adapter"))
    with pytest.raises(SessionStateError, match="already restrained"):
        tune_restraint(model, lambda m: 0.0, requests=REQUESTS, tokenizer=spaced_tokenizer(), progress=False)
    with pytest.raises(ValueError, match="requests, tokenizer"):
        tune_restraint(model, lambda m: 0.0)


def test_calibrated_edits_keep_their_margin_at_no_more_strength_than_they_had(tmp_path) -> None:
    run = session(tmp_path / "edits.db", model=adapted(restraint="none"))
    run.edit(REQUESTS)
    strong = run.figures()[MODULE].delta_frobenius_norm
    margin = 0.7 * min(one.probability for one in run.verify().values())
    found = calibrate_strengths(run, margin, contexts=[""], progress=False)
    assert set(found.strengths) == {record.id for record in run.history.edits(standing=True)}
    assert all(0 < value <= 1 for value in found.strengths.values()) and min(found.strengths.values()) < 0.99
    assert run.figures()[MODULE].delta_frobenius_norm < strong
    now = run.verify()
    for edit, probability in found.probabilities.items():
        assert now[edit].probability == pytest.approx(probability, rel=1e-3)
        assert edit not in found.held_before or probability >= margin * 0.999
    # a little less, and the margin is lost: the strength is the least one, up to the bisection and the other edits
    reference = session(model=adapted(restraint="none"))
    dense = sum(run.history.factors(edit).updates[MODULE].dense() * value for edit, value in found.strengths.items())
    assert torch.allclose(layer_of(run).raw_update("default").dense(), dense, atol=1e-5)
    reference.close()
    run.close()
    again = resumed(tmp_path / "edits.db")
    assert same(factors(again), factors(run))
    assert {r.id: r.strength for r in again.history.edits()} == pytest.approx(found.strengths)


def test_a_strength_below_the_calibrated_one_loses_the_margin() -> None:
    run = session()
    (result,) = run.edit(REQUESTS[0])
    margin = 0.7 * result.probability_after
    found = calibrate_strengths(run, margin, rounds=8, contexts=[""], progress=False)
    assert found.held_before == (1,) and 0 < found.strengths[1] < 1
    run.set_strengths({1: found.strengths[1] - 2 / 2**8})
    assert run.verify()[1].probability < margin


def test_calibration_can_be_looked_at_without_being_applied() -> None:
    run = edited()
    before = factors(run)
    calibrate_strengths(run, 0.3, apply=False, progress=False)
    assert same(factors(run), before) and all(record.strength == 1 for record in run.history.edits())


def test_wrong_settings_are_named() -> None:
    run = session()
    with pytest.raises(ValueError, match="margin: 1"):
        calibrate_strengths(run, 1)
    with pytest.raises(ValueError, match="rounds: 0"):
        calibrate_strengths(run, 0.5, rounds=0)
    with pytest.raises(ValueError, match="no edit stands"):
        calibrate_strengths(run, 0.5, progress=False)
    with pytest.raises(SessionStateError, match="edit: 7 does not stand"):
        run.set_strengths({7: 0.5})
