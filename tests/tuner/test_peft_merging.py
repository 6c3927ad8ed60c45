"""What PEFT asks of merging, unmerging and unloading."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from peft_prune.tuner import PruneEditLayer
from tests.tuner.peft_cases import CASES, KINDS, Case, adapted, add, factors

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_kind = pytest.mark.parametrize("kind", KINDS)


def base_weights(model) -> dict[str, torch.Tensor]:
    return {
        name: layer.get_base_layer().weight.detach().clone()
        for name, layer in model.named_modules()
        if isinstance(layer, PruneEditLayer)
    }


@every_case
@every_kind
@pytest.mark.parametrize("safe_merge", [False, True])
def test_merged_outputs_equal_unmerged_ones_and_differ_from_the_base(case: Case, kind: str, safe_merge: bool) -> None:
    base = case.outputs(case.build())
    model = adapted(case, kind)
    unmerged = case.outputs(model)
    assert not torch.allclose(unmerged, base, atol=1e-3, rtol=1e-3)
    model.merge_adapter(safe_merge=safe_merge)
    assert torch.allclose(case.outputs(model), unmerged, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(case.outputs(model), unmerged)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    assert not any(isinstance(module, PruneEditLayer) for module in merged.modules())
    assert torch.allclose(case.outputs(merged), unmerged, atol=1e-5)


@every_case
@every_kind
def test_merging_twice_is_merging_once(case: Case, kind: str) -> None:
    model = adapted(case, kind)
    model.merge_adapter()
    once = case.outputs(model)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    assert torch.equal(case.outputs(model), once)


@every_case
@every_kind
def test_merging_and_unmerging_leave_the_base_weight_as_it_was(case: Case, kind: str) -> None:
    model = adapted(case, kind)
    before = base_weights(model)
    for safe_merge in (False, True):
        model.merge_adapter(safe_merge=safe_merge)
        assert not any(torch.equal(before[name], weight) for name, weight in base_weights(model).items())
        model.unmerge_adapter()
        assert all(torch.equal(before[name], weight) for name, weight in base_weights(model).items())


@every_case
@every_kind
@pytest.mark.parametrize("target", [0, 1])
def test_several_adapters_merge_in_any_order_together_or_one_after_another(case: Case, kind: str, target: int) -> None:
    model = adapted(case, kind, "first")
    add(model, case, kind, "second", target=target)
    base = case.outputs(case.build())
    model.base_model.set_adapter(["first", "second"])
    expected = case.outputs(model)
    for order in itertools.permutations(["first", "second"]):
        model.merge_adapter(list(order))
        assert torch.allclose(case.outputs(model), expected, atol=1e-4)
        model.unmerge_adapter()
        for name in order:
            model.merge_adapter([name])
        assert torch.allclose(case.outputs(model), expected, atol=1e-4)
        model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.equal(case.outputs(model), base)


@every_case
@every_kind
def test_one_of_several_adapters_merges_into_a_plain_model(case: Case, kind: str) -> None:
    model = adapted(case, kind, "first")
    add(model, case, kind, "second")
    expected = {}
    for name in ("first", "second"):
        model.set_adapter(name)
        expected[name] = case.outputs(model)
    assert not torch.allclose(expected["first"], expected["second"], atol=1e-3)
    for name in ("first", "second"):
        merged = copy.deepcopy(model).merge_and_unload(adapter_names=[name])
        assert torch.allclose(case.outputs(merged), expected[name], atol=1e-5)


@every_kind
@pytest.mark.parametrize("restrain_on", ["every", "merge"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("factor", ["prune_edit_A", "prune_edit_B"])
def test_a_safe_merge_refuses_factors_that_are_not_finite(
    kind: str, restrain_on: str, value: float, factor: str
) -> None:
    case = CASES[0]
    model = adapted(case, kind, restrain_on=restrain_on)
    before = base_weights(model)
    for name, parameter in factors(model).items():
        if factor in name:
            parameter.data[0] = value
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter default seems"):
        model.merge_and_unload(safe_merge=True)
    assert all(torch.equal(before[name], weight) for name, weight in base_weights(model).items())


@every_case
@every_kind
def test_unloading_gives_the_base_back_after_any_number_of_rounds(case: Case, kind: str) -> None:
    base = case.build()
    expected, names = case.outputs(base), [name for name, _ in base.named_parameters()]
    model = adapted(case, kind)
    for _ in range(2):
        base = model.unload()
        assert [name for name, _ in base.named_parameters()] == names
        assert torch.equal(case.outputs(base), expected)
        model = adapted(Case(case.name, lambda base=base: base, case.targets, case.head), kind)
        assert not torch.allclose(case.outputs(model), expected, atol=1e-3)


@every_kind
def test_a_merged_adapter_cannot_be_deleted_and_another_can(kind: str) -> None:
    case = CASES[0]
    model = adapted(case, kind, "first")
    add(model, case, kind, "second")
    model.merge_adapter(["first"])
    merged = case.outputs(model)
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("first")
    model.delete_adapter("second")
    assert torch.equal(case.outputs(model), merged)
    model.unmerge_adapter()
    assert torch.allclose(case.outputs(model), merged, atol=1e-5)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_merging_into_a_base_of_another_dtype_rounds_once(kind: str, dtype: torch.dtype) -> None:
    case = CASES[0]
    build = Case(case.name, lambda: case.build(dtype=dtype), case.targets, case.head)
    model = adapted(build, kind)
    before = base_weights(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, PruneEditLayer)}
    exact = {n: before[n].double() + layer.get_delta_weight("default").double() for n, layer in layers.items()}
    model.merge_adapter()
    for name, weight in base_weights(model).items():
        assert weight.dtype == dtype
        # the update itself is a product in float32
        assert (weight.double() - exact[name]).abs().max() <= torch.finfo(dtype).eps * exact[name].abs().max()
    model.unmerge_adapter()
    assert all(torch.equal(before[name], weight) for name, weight in base_weights(model).items())


@every_kind
def test_a_model_cast_while_it_is_merged_unmerges_in_its_new_dtype(kind: str) -> None:
    case = CASES[0]
    model = adapted(case, kind)
    before = base_weights(model)
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    assert all(torch.equal(before[name].bfloat16(), weight) for name, weight in base_weights(model).items())


@every_case
@every_kind
def test_a_copy_of_a_merged_model_unmerges_on_its_own(case: Case, kind: str) -> None:
    model = adapted(case, kind)
    unmerged = case.outputs(model)
    model.merge_adapter()
    merged = case.outputs(model)
    other = copy.deepcopy(model)
    other.unmerge_adapter()
    assert torch.equal(case.outputs(other), unmerged)
    assert torch.equal(case.outputs(model), merged)
    model.unmerge_adapter()
    assert torch.equal(case.outputs(model), unmerged)


@every_kind
def test_a_merged_adapter_disables_and_stays_disabled_only_inside_the_context(kind: str) -> None:
    case = CASES[1]
    model = adapted(case, kind)
    base, adapted_outputs = case.outputs(case.build()), case.outputs(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(case.outputs(model), base)
    assert torch.allclose(case.outputs(model), adapted_outputs, atol=1e-5)
