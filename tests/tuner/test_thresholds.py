"""The threshold schedule: κ, the update's norm, the output perturbation; and a base whose κ is infinite."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.monitoring import Monitor
from peft_prune.spectral import ConditionNumber
from tests.tiny import tiny_gpt2
from tests.tuner.test_edits import base_weight, dense_log, strong


def adapted(singular: bool = False, **config):
    """A tiny GPT-2 with an adapter on layer 1, whose base weight has a singular value of zero where asked."""
    base = tiny_gpt2()
    if singular:
        with torch.no_grad():
            base.transformer.h[1].mlp.c_proj.weight[:, 0] = 0
    config = {"restrain_on": "threshold", "layers_to_transform": [1], **config}
    model = get_peft_model(base, PruneEditConfig(**config)).eval()
    ((name, layer),) = model.edited_layers()
    return model, layer, name


def restrained_after(model, layer, name, sizes: list[float]) -> list[bool]:
    """Whether the restraint acted after each update of so many times σmax(W₀)."""
    found = []
    for seed, size in enumerate(sizes):
        model.add_edits({name: strong(layer, seed, times=size)})
        found.append(not layer.restraint_is_pending("default"))
    return found


def test_the_norm_of_the_update_is_a_threshold_beside_the_condition_number() -> None:
    model, layer, name = adapted(max_condition_growth=1e9, max_update_norm=2.0)
    assert restrained_after(model, layer, name, [1.5, 0.1, 3.0]) == [False, False, True]
    raw = sum(strong(layer, seed, times=size).dense().double() for seed, size in enumerate([1.5, 0.1, 3.0]))
    found = layer.effective_update("default").dense().double()
    assert torch.allclose(found, dense_log(raw, base_weight(layer), 1.2), atol=1e-4 * float(raw.norm()))


def test_the_output_perturbation_is_a_threshold_and_needs_the_second_moment() -> None:
    model, layer, name = adapted(max_condition_growth=1e9, max_output_perturbation=0.5)
    with pytest.raises(ValueError, match=r"max_output_perturbation: the second moment of transformer\.h\.1\.mlp\.c_pr"):
        model.add_edits({name: strong(layer, 0)})
    model, layer, name = adapted(max_condition_growth=1e9, max_output_perturbation=0.5)
    model.set_second_moments({name: torch.eye(layer.in_features)})
    weight = base_weight(layer).double()
    weak = strong(layer, 0, times=0.5).dense().double()
    # with C = I the ratio is ‖ΔW‖_F² / ‖W₀‖_F²
    assert float(weak.square().sum() / weight.square().sum()) < 0.5
    assert restrained_after(model, layer, name, [0.5, 4.0]) == [False, True]
    with pytest.raises(ValueError, match=r"moment: shape \(3, 3\) must be \(64, 64\) for transformer\.h\.1"):
        model.set_second_moments({name: torch.eye(3)})


def test_on_a_singular_base_the_norm_decides_and_a_warning_says_so_once() -> None:
    model, layer, name = adapted(singular=True)
    assert ConditionNumber(base_weight(layer)).condition_number == float("inf")
    with pytest.warns(UserWarning, match=r"κ\(W0\) is infinite .* ‖ΔW‖₂ exceeds σmax\(W0\)") as caught:
        assert restrained_after(model, layer, name, [0.4, 0.3, 3.0]) == [False, False, True]
    assert len(caught) == 1


@pytest.mark.parametrize("config", [{"max_update_norm": 2.0}, {"max_output_perturbation": 1.0}])
def test_on_a_singular_base_given_thresholds_act_without_a_warning(config) -> None:
    model, layer, name = adapted(singular=True, **config)
    model.set_second_moments({name: torch.eye(layer.in_features)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restrained_after(model, layer, name, [0.5, 6.0]) == [False, True]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_update_norm": 0.0}, "max_update_norm: 0.0 must be a finite number above 0"),
        ({"max_output_perturbation": float("inf")}, "max_output_perturbation: inf must be a finite number above 0"),
        ({"max_update_norm": "2"}, "max_update_norm: '2' must be a finite number above 0"),
        ({"max_update_norm": 2.0, "restrain_on": "every"}, "acts with restrain_on='threshold' alone"),
    ],
)
def test_thresholds_that_cannot_act_are_refused(config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(**config)


def test_the_schedule_and_the_monitor_share_their_figures(monkeypatch) -> None:
    model, layer, name = adapted(max_update_norm=50.0)
    layer.condition()
    calls = {"of": 0, "project": 0, "spectral_norm": 0}
    for method in calls:
        original = getattr(ConditionNumber, method)

        def counted(self, *args, _method=method, _original=original):
            calls[_method] += 1
            return _original(self, *args)

        monkeypatch.setattr(ConditionNumber, method, counted)
    monitor = Monitor(model.base_model)
    model.add_edits({name: strong(layer, 0, times=0.1)})
    assert calls == {"of": 1, "project": 1, "spectral_norm": 1}
    first = monitor.figures()
    assert calls == {"of": 1, "project": 1, "spectral_norm": 1}
    model.base_model.restrain_if_due()
    assert calls == {"of": 1, "project": 1, "spectral_norm": 1} and monitor.figures() == first
    model.add_edits({name: strong(layer, 1, times=0.1)})
    assert calls == {"of": 2, "project": 2, "spectral_norm": 2}


def test_figures_of_many_edits_equal_those_of_a_dense_computation() -> None:
    model, layer, name = adapted(restrain_on="every", restrain_every=7, restraint="log")
    monitor, weight = Monitor(model.base_model), base_weight(layer).double()
    for seed in range(90):
        model.add_edits({name: strong(layer, seed, times=0.4)})
        if seed % 3 == 0 or seed > 70:
            found = monitor.figures()[name]
            delta = layer.effective_update("default").to(torch.float64).dense()
            s = torch.linalg.svdvals(weight + delta)
            assert found.condition_number == pytest.approx(float(s[0] / s[-1]), rel=1e-3)
            assert found.delta_spectral_norm == pytest.approx(float(torch.linalg.matrix_norm(delta, 2)), rel=1e-3)
            assert found.delta_frobenius_norm == pytest.approx(float(delta.norm()), rel=1e-4)
    raw = sum(strong(layer, seed, times=0.4).dense().double() for seed in range(90))
    assert torch.allclose(layer.raw_update("default").dense().double(), raw, atol=1e-5 * float(raw.norm()))
    model.restrain()
    found = layer.effective_update("default").dense().double()
    assert torch.allclose(found, dense_log(raw, weight, 1.2), atol=1e-5 * float(raw.norm()))


def test_the_raw_sum_of_many_edits_is_whole_whenever_somebody_asks_and_at_every_state() -> None:
    model, layer, name = adapted(restrain_on="every", restrain_every=7, restraint="log")
    updates = [strong(layer, seed, times=0.4) for seed in range(60)]
    states = {}
    for count, update in enumerate(updates, start=1):
        model.add_edits({name: update})
        if count in (20, 33, 45):
            states[count] = model.edit_state()

    def close(count: int) -> bool:
        raw = sum(update.dense().double() for update in updates[:count])
        return torch.allclose(layer.raw_update("default").dense().double(), raw, atol=1e-5 * float(raw.norm()))

    assert close(60) and close(60)
    for count, state in states.items():
        model.restore_edit_state(state)
        assert close(count)
        model.restrain()
        raw = sum(update.dense().double() for update in updates[:count])
        found = layer.effective_update("default").dense().double()
        assert torch.allclose(found, dense_log(raw, base_weight(layer).double(), 1.2), atol=1e-5 * float(raw.norm()))
