"""Several adapters at once: summed, or another one for every row."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from peft_prune.errors import MergedAdapterError
from tests.tuner.peft_cases import CASES, KINDS, Case, adapted, add

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_kind = pytest.mark.parametrize("kind", KINDS)


def two(case: Case, kind: str, target: int = 0) -> PeftModel:
    model = adapted(case, kind, "first")
    add(model, case, kind, "second", target=target)
    return model


@every_case
@every_kind
@pytest.mark.parametrize("target", [0, 1])
def test_two_adapters_made_active_by_a_list_act_together_merged_or_not(case: Case, kind: str, target: int) -> None:
    model = two(case, kind, target)
    model.base_model.set_adapter(["first", "second"])
    expected = case.outputs(model)
    model.set_adapter("first")
    one = case.outputs(model)
    model.set_adapter(["first", "second", "first"])
    assert model.active_adapters == ["first", "second"]
    assert torch.equal(case.outputs(model), expected) and not torch.allclose(one, expected, atol=1e-6)
    with model.disable_adapter():
        assert torch.equal(case.outputs(model), case.outputs(case.build()))
    model.merge_adapter()
    assert torch.allclose(case.outputs(model), expected, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(case.outputs(model), expected)
    model.set_adapter("first")
    assert torch.equal(case.outputs(model), one)


@pytest.mark.parametrize("names", [["first", "third"], ["third"], [], "third"])
def test_an_adapter_that_is_not_there_is_named(names) -> None:
    model = two(CASES[0], "trained")
    with pytest.raises(ValueError, match="not found"):
        model.set_adapter(names)
    assert model.active_adapters == ["first"]


def test_both_active_adapters_are_saved(tmp_path) -> None:
    case = CASES[1]
    model = two(case, "trained")
    model.set_adapter(["first", "second"])
    expected = case.outputs(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.build(), tmp_path / "first", "first")
    loaded.load_adapter(tmp_path / "second", "second")
    loaded.set_adapter(["first", "second"])
    assert torch.equal(case.outputs(loaded), expected)


@every_case
@every_kind
@pytest.mark.parametrize("target", [0, 1])
def test_a_weighted_adapter_has_the_sum_in_every_layer_that_any_of_them_has(case: Case, kind: str, target: int) -> None:
    model = two(case, kind, target)
    model.add_weighted_adapter(["first", "second"], [0.5, -2.0], "sum")
    model.set_adapter("sum")
    layers = [layer for module in model.modules() for layer in [module] if hasattr(layer, "prune_edit_A")]
    assert layers
    for layer in layers:
        parts = [(0.5, "first"), (-2.0, "second")]
        known = [weight * layer.get_delta_weight(name).double() for weight, name in parts if name in layer.scaling]
        assert torch.allclose(layer.get_delta_weight("sum").double(), sum(known), atol=1e-5)
    expected = case.outputs(model)
    model.merge_adapter()
    assert torch.allclose(case.outputs(model), expected, atol=1e-4)
    model.unmerge_adapter()
    model.delete_adapter("sum")
    assert set(model.peft_config) == {"first", "second"}


def rows_of(case: Case) -> dict:
    if case.name == "mlp":
        return {"x": torch.linspace(-2, 2, 40).reshape(4, 10)}
    return {"input_ids": torch.tensor([[3, 14, 15], [8, 2, 7], [1, 1, 4], [9, 9, 2]])}


def outputs(model, inputs: dict, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        found = model(**inputs, **kwargs)
    return found if isinstance(found, torch.Tensor) else found.logits


@every_case
@every_kind
@pytest.mark.parametrize("target", [0, 1])
def test_every_row_of_a_batch_has_the_adapter_of_its_name(case: Case, kind: str, target: int) -> None:
    model, inputs = two(case, kind, target), rows_of(case)
    names = ["second", "__base__", "first", "second"]
    mixed = outputs(model, inputs, adapter_names=names)
    expected = {"__base__": outputs(case.build(), inputs)}
    for name in ("first", "second"):
        model.set_adapter(name)
        expected[name] = outputs(model, inputs)
    for row, name in enumerate(names):
        assert torch.allclose(mixed[row], expected[name][row], atol=1e-5)
    assert not torch.allclose(expected["first"], expected["second"], atol=1e-3)
    # nothing is left behind
    assert torch.equal(outputs(model, inputs), expected["second"])


def test_generation_and_beam_search_take_a_name_for_each_row() -> None:
    case = CASES[1]
    model = two(case, "edited")
    ids, names = torch.tensor([[3, 14, 15], [3, 14, 15]]), ["second", "__base__"]
    for beams in (1, 3):
        settings = {"max_new_tokens": 4, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
        found = model.generate(input_ids=ids, adapter_names=names, **settings)
        model.set_adapter("second")
        for row, alone in enumerate((model, case.build())):
            expected = alone.generate(input_ids=ids[:1], **settings)[0]
            assert torch.equal(found[row, : len(expected)], expected) and not found[row, len(expected) :].any()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["first", "third", "first", "first"], "'third' is not one of first, second, __base__"),
        (["first"], "1 names, but .* gets 4 rows"),
        ("first", "must be a list of adapters' names"),
        ([1, 2, 3, 4], "must be a list of adapters' names"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, message: str) -> None:
    model = two(CASES[0], "trained")
    with pytest.raises(ValueError, match=message):
        outputs(model, rows_of(CASES[0]), adapter_names=names)


def test_a_mixed_batch_is_refused_while_merged_and_in_training() -> None:
    model = two(CASES[0], "trained")
    names = ["first", "second", "first", "second"]
    with pytest.raises(ValueError, match="training mode"):
        outputs(model.train(), rows_of(CASES[0]), adapter_names=names)
    model.eval().merge_adapter()
    with pytest.raises(MergedAdapterError, match="are merged into every row"):
        outputs(model, rows_of(CASES[0]), adapter_names=names)
