"""What PEFT asks of active, inactive, disabled and deleted adapters, and of what may be adapted at all."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftMixedModel, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_prune import PruneEditConfig
from peft_prune.tuner import PruneEditLayer
from tests.tuner.peft_cases import CASES, KINDS, Case, adapted, add, config_of, factors, tiny_mlp, trainable

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_kind = pytest.mark.parametrize("kind", KINDS)


def adapted_names(model, adapter_name: str = "default") -> set[str]:
    return {name for name, _ in model.base_model.edited_layers(adapter_name)}


@every_case
@every_kind
@pytest.mark.parametrize("target", [0, 1])
def test_gradients_follow_the_active_adapter(case: Case, kind: str, target: int) -> None:
    model = adapted(case, kind, "first")
    add(model, case, kind, "second", target=target)
    first, second = set(factors(model, "first")), set(factors(model, "second"))
    assert first and second and trainable(model) == first
    for name, expected in (("second", second), ("first", first), ("second", second)):
        model.set_adapter(name)
        assert trainable(model) == expected
    with model.disable_adapter():
        assert trainable(model) == set()
    assert trainable(model) == second
    model.set_adapter("first", inference_mode=True)
    assert trainable(model) == set() and model.active_adapters == ["first"]
    model.base_model.set_adapter(["first", "second"])
    assert trainable(model) == first | second
    model.set_requires_grad("first", False)
    assert trainable(model) == second
    model.set_requires_grad(["first", "second"])
    assert trainable(model) == first | second


@every_kind
def test_gradients_follow_modules_to_save_as_well(kind: str) -> None:
    case = CASES[0]
    model = adapted(case, kind, "first", modules_to_save=["head"])
    add(model, case, kind, "second", modules_to_save=["head"])
    for name in ("first", "second", "first"):
        model.set_adapter(name)
        head = {f"base_model.model.head.modules_to_save.{name}.{part}" for part in ("weight", "bias")}
        assert trainable(model) == set(factors(model, name)) | head
    with model.disable_adapter():
        assert trainable(model) == set()


@every_kind
@pytest.mark.parametrize("is_trainable", [False, True])
def test_loaded_adapters_are_trainable_only_when_asked(tmp_path, kind: str, is_trainable: bool) -> None:
    case = CASES[0]
    adapted(case, kind).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(case.build(), tmp_path, is_trainable=is_trainable)
    assert trainable(model) == (set(factors(model)) if is_trainable else set())
    model.load_adapter(tmp_path, "other", is_trainable=is_trainable)
    both = set(factors(model)) | set(factors(model, "other"))
    assert trainable(model) == (both if is_trainable else set()) and model.active_adapters == ["default"]
    model.set_adapter("other")
    assert trainable(model) == set(factors(model, "other"))


@every_kind
def test_editing_changes_nothing_about_which_parameters_are_trainable(kind: str) -> None:
    case = CASES[0]
    model = adapted(case, kind, "first")
    add(model, case, "edited", "second")
    assert trainable(model) == set(factors(model, "first"))


@every_case
@every_kind
def test_several_active_adapters_add_up(case: Case, kind: str) -> None:
    model = adapted(case, kind, "first")
    add(model, case, kind, "second")
    layer = next(iter(dict(model.base_model.edited_layers("first")).values()))
    x = torch.randn(3, layer.in_features)
    model.base_model.set_adapter(["first", "second"])
    dense = sum(layer.effective_update(name).dense().double() for name in ("first", "second"))
    with torch.no_grad():
        expected = layer.get_base_layer()(x).double() + x.double() @ dense.T
        assert torch.allclose(layer(x).double(), expected, atol=1e-5)
    outputs = {}
    for names in (["first"], ["second"], ["first", "second"]):
        model.base_model.set_adapter(names)
        outputs[tuple(names)] = case.outputs(model)
    (one, two, both) = outputs.values()
    assert not torch.allclose(one, two, atol=1e-3) and not torch.allclose(both, one, atol=1e-3)


@every_case
@every_kind
def test_disabling_is_bit_exact_and_may_be_nested(case: Case, kind: str) -> None:
    base = case.outputs(case.build())
    model = adapted(case, kind)
    expected = case.outputs(model)
    with model.disable_adapter():
        with model.disable_adapter():
            assert torch.equal(case.outputs(model), base)
        assert torch.equal(case.outputs(model), base)
    assert torch.equal(case.outputs(model), expected)
    model.base_model.disable_adapter_layers()
    assert torch.equal(case.outputs(model), base)
    model.base_model.enable_adapter_layers()
    assert torch.equal(case.outputs(model), expected)


@every_case
@every_kind
@pytest.mark.parametrize("target", [0, 1])
def test_deleting_an_adapter_removes_every_trace_of_it(case: Case, kind: str, target: int) -> None:
    model = adapted(case, kind, "first")
    expected = case.outputs(model)
    add(model, case, kind, "second", target=target)
    model.set_adapter("second")
    model.delete_adapter("second")
    assert "second" not in model.peft_config and not factors(model, "second")
    layers = [module for module in model.modules() if isinstance(module, PruneEditLayer)]
    assert not any("second" in getattr(layer, name) for layer in layers for name in layer.other_param_names)
    assert not any("second" in layer.active_adapters for layer in layers)
    model.set_adapter("first")
    assert torch.equal(case.outputs(model), expected)
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("second")
    model.delete_adapter("first")
    assert torch.equal(case.outputs(model.base_model.model), case.outputs(case.build()))


@every_kind
def test_deleting_an_inactive_adapter_leaves_the_active_one_alone(kind: str) -> None:
    case = CASES[1]
    model = adapted(case, kind, "first")
    expected = case.outputs(model)
    add(model, case, kind, "second")
    model.delete_adapter("second")
    assert model.active_adapters == ["first"] and trainable(model) == set(factors(model, "first"))
    assert torch.equal(case.outputs(model), expected)


@every_kind
def test_a_name_cannot_be_given_twice(kind: str) -> None:
    case = CASES[0]
    model = adapted(case, kind)
    expected = case.outputs(model)
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", config_of(case, kind))
    assert torch.equal(case.outputs(model), expected)


def test_targets_are_chosen_by_name_expression_exclusion_and_layer() -> None:
    gpt2 = CASES[1]
    for config, expected in (
        ({"target_modules": ["c_proj"]}, {f"transformer.h.{i}.{m}.c_proj" for i in range(3) for m in ("mlp", "attn")}),
        ({"target_modules": r".*h\.[02]\.mlp\.c_fc"}, {f"transformer.h.{i}.mlp.c_fc" for i in (0, 2)}),
        ({"exclude_modules": ["h.1.mlp.c_proj"]}, {f"transformer.h.{i}.mlp.c_proj" for i in (0, 2)}),
        ({"layers_to_transform": 0}, {"transformer.h.0.mlp.c_proj"}),
        (
            {"target_modules": ["c_fc"], "layers_to_transform": [0, 2], "layers_pattern": "h"},
            {f"transformer.h.{i}.mlp.c_fc" for i in (0, 2)},
        ),
    ):
        assert adapted_names(get_peft_model(gpt2.build(), PruneEditConfig(**config))) == expected


def test_all_linear_adapts_every_linear_layer_but_the_head() -> None:
    model = get_peft_model(CASES[2].build(), PruneEditConfig(target_modules="all-linear"))
    assert len(adapted_names(model)) == 3 * 7


def test_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        get_peft_model(tiny_mlp(), PruneEditConfig(target_modules=["nowhere"]))


def test_a_model_of_unknown_structure_needs_target_modules() -> None:
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(tiny_mlp(), PruneEditConfig())


@pytest.mark.parametrize(
    "module",
    [nn.Embedding(5, 4), nn.Conv1d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.LayerNorm(4), nn.MultiheadAttention(4, 2)],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("r", [0, 4])
def test_what_is_not_linear_is_refused_by_name(module: nn.Module, r: int) -> None:
    with pytest.raises(TypeError, match=rf"(?s){type(module).__name__}\(.*only torch\.nn\.Linear"):
        get_peft_model(nn.ModuleDict({"layer": module}), PruneEditConfig(target_modules=["layer"], r=r))


@pytest.mark.parametrize("build", [lambda: nn.Linear(6, 3), lambda: nn.Linear(6, 3, bias=False), lambda: Conv1D(3, 6)])
def test_the_shape_of_the_base_layer_is_exposed(build) -> None:
    model = get_peft_model(nn.ModuleDict({"layer": build()}), PruneEditConfig(target_modules=["layer"], r=2))
    ((_, layer),) = model.edited_layers()
    assert (layer.in_features, layer.out_features) == (6, 3)
    assert layer.weight is layer.get_base_layer().weight and layer.bias is layer.get_base_layer().bias
    assert repr(layer).startswith("prune_edit.PruneEditLinear(")


def test_what_only_other_methods_can_is_refused_clearly(tmp_path) -> None:
    case = CASES[0]
    model = adapted(case, "trained")
    with pytest.raises(ValueError, match="not compatible with the `PeftMixedModel`"):
        get_peft_model(case.build(), config_of(case, "trained"), mixed=True)
    with pytest.raises(ValueError, match="not compatible"):
        PeftMixedModel(case.build(), LoraConfig(target_modules=["first"])).add_adapter("x", config_of(case, "trained"))
    model.save_pretrained(tmp_path)
    with pytest.raises((ValueError, NotImplementedError)):
        hotswap_adapter(model, tmp_path, "default")


def test_two_methods_on_one_model_are_refused_or_kept_apart() -> None:
    case = CASES[0]
    model = adapted(case, "trained")
    with pytest.raises(ValueError):
        model.add_adapter("lora", LoraConfig(target_modules=["first"]))


def test_a_second_adapter_with_trained_biases_is_refused() -> None:
    case = CASES[0]
    model = get_peft_model(case.build(), config_of(case, "trained", bias="all"))
    with pytest.raises(ValueError, match="bias"):
        model.add_adapter("second", config_of(case, "trained", bias="all"))


@every_kind
def test_a_copied_configuration_adapts_another_model_on_its_own(kind: str) -> None:
    case = CASES[1]
    config = config_of(case, kind)
    one = get_peft_model(case.build(), config)
    two = get_peft_model(case.build(), copy.deepcopy(config))
    for name, layer in one.edited_layers():
        layer.set_rank("default", 3)
        assert dict(two.edited_layers())[name].rank("default") == (8 if kind == "trained" else 0)
