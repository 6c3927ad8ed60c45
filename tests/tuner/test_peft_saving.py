"""What PEFT asks of saving, loading and state dicts."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from peft import (
    PeftModel,
    get_base_model_state_dict,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from peft_prune import PruneEditConfig
from tests.tiny import agree, tiny_gpt2
from tests.tuner.peft_cases import CASES, KINDS, Case, adapted, add, config_of, factors, fill
from tests.tuner.test_merge import edited_model

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_kind = pytest.mark.parametrize("kind", KINDS)
TENSORS = "adapter_model.safetensors"


@every_case
@every_kind
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_outputs_and_factors_are_bit_equal_after_saving_and_loading(tmp_path, case, kind, low_cpu_mem_usage) -> None:
    model = adapted(case, kind)
    expected, saved = case.outputs(model), factors(model)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "adapter_config.json", TENSORS]
    loaded = PeftModel.from_pretrained(case.build(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert agree(case.outputs(loaded), expected)
    found = factors(loaded)
    assert found.keys() == saved.keys()
    # trained factors come back as they are, those of edits in a basis of their own
    assert kind == "edited" or all(torch.equal(found[name], saved[name]) for name in saved)
    loaded.load_adapter(tmp_path, "other", low_cpu_mem_usage=low_cpu_mem_usage)
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    loaded.set_adapter("other")
    assert agree(case.outputs(loaded), expected)


@pytest.mark.parametrize("restrain_on", ["every", "threshold"])
def test_saving_strongly_trained_factors_changes_neither_them_nor_the_outputs(tmp_path, restrain_on: str) -> None:
    """These schedules restrain edits, and training adds none."""
    case = CASES[0]
    model = adapted(case, "trained", restrain_on=restrain_on)
    for parameter in factors(model).values():
        parameter.data.mul_(100)
    before, expected = copy.deepcopy(factors(model)), case.outputs(model)
    model.save_pretrained(tmp_path)
    assert all(torch.equal(parameter, before[name]) for name, parameter in factors(model).items())
    loaded = PeftModel.from_pretrained(case.build(), tmp_path)
    assert torch.equal(case.outputs(loaded), expected)
    merged = loaded.merge_and_unload()
    assert torch.allclose(case.outputs(merged), expected, rtol=1e-3)


@every_case
def test_an_adapter_without_edits_is_saved_and_loaded(tmp_path, case: Case) -> None:
    model = get_peft_model(case.build(), config_of(case, "edited"))
    model.save_pretrained(tmp_path)
    assert all(0 in tensor.shape for tensor in load_file(tmp_path / TENSORS).values())
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(case.build(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(case.outputs(loaded), case.outputs(case.build()))
        fill(loaded, "edited", "default")
        assert not torch.equal(case.outputs(loaded), case.outputs(case.build()))


@every_case
@every_kind
def test_selected_adapters_are_saved_each_in_its_own_place(tmp_path, case: Case, kind: str) -> None:
    model = adapted(case, kind)
    for name in ("second", "third"):
        add(model, case, kind, name)
    model.save_pretrained(tmp_path, selected_adapters=["default", "second"])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"README.md", "adapter_config.json", TENSORS, "second"}
    loaded = PeftModel.from_pretrained(case.build(), tmp_path)
    loaded.load_adapter(tmp_path / "second", "second")
    for name in ("default", "second"):
        model.set_adapter(name)
        loaded.set_adapter(name)
        assert agree(case.outputs(loaded), case.outputs(model))
    with pytest.raises(ValueError, match="nowhere"):
        model.save_pretrained(tmp_path, selected_adapters=["nowhere"])


@every_kind
@pytest.mark.parametrize("name", ["my-adapter", "first", "äd äpter", "A", "0", "weight", "defaults"])
def test_the_name_of_an_adapter_makes_no_difference(tmp_path, kind: str, name: str) -> None:
    case = CASES[0]
    named, default = adapted(case, kind, name), adapted(case, kind)
    assert torch.equal(case.outputs(named), case.outputs(default))
    state = {key: get_peft_model_state_dict(model, adapter_name=key) for key, model in ((name, named),)}[name]
    expected = get_peft_model_state_dict(default)
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)
    add(named, case, kind, "other")
    named.set_adapter(name)
    named.save_pretrained(tmp_path, selected_adapters=[name])
    folder = tmp_path / name
    loaded = PeftModel.from_pretrained(case.build(), folder, adapter_name="anything")
    assert agree(case.outputs(loaded), case.outputs(default))


def test_a_dot_in_the_name_of_an_adapter_is_refused() -> None:
    case = CASES[0]
    with pytest.raises(KeyError, match=r"\."):
        get_peft_model(case.build(), config_of(case, "trained"), "version.2")


@every_kind
def test_loading_twice_under_one_name_gives_the_second_file(tmp_path, kind: str) -> None:
    case = CASES[1]
    model = adapted(case, kind)
    add(model, case, kind, "second", **({"r": 4} if kind == "trained" else {}))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.build(), tmp_path)
    loaded.load_adapter(tmp_path / "second", "default")
    model.set_adapter("second")
    assert agree(case.outputs(loaded), case.outputs(model))


@every_case
@every_kind
def test_a_state_dict_carries_an_adapter_to_another_model(case: Case, kind: str) -> None:
    model = adapted(case, kind, restrain_on="merge", restraint="linear")
    for parameter in factors(model).values():
        parameter.data.mul_(10)
    unrestrained, state = case.outputs(model), get_peft_model_state_dict(model)
    expected, keys = case.outputs(model), list(state)
    assert not torch.allclose(expected, unrestrained, atol=1e-2)
    other = get_peft_model(case.build(), config_of(case, "edited", restrain_on="merge", restraint="linear")).eval()
    result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys and list(state) == keys
    assert torch.equal(case.outputs(other), expected)
    # what collecting the state dict has restrained is not restrained a second time
    assert torch.allclose(case.outputs(other.merge_and_unload()), expected, atol=1e-4, rtol=1e-4)


def test_a_models_own_state_dict_set_again_keeps_the_raw_factors() -> None:
    case = CASES[1]
    model = edited_model(tiny_gpt2, restrain_every=3)
    layers = dict(model.edited_layers())
    raw = {name: layer.raw_update("default").dense() for name, layer in layers.items()}
    expected = case.outputs(model)
    effective = {name: layer.effective_update("default").dense() for name, layer in layers.items()}
    assert not any(torch.allclose(effective[name], raw[name], atol=1e-2) for name in layers)
    set_peft_model_state_dict(model, get_peft_model_state_dict(model))
    model.restrain()
    assert torch.allclose(case.outputs(model), expected, atol=1e-5)
    assert all(torch.equal(layer.raw_update("default").dense(), raw[name]) for name, layer in layers.items())


@every_case
@every_kind
def test_injected_layers_take_a_state_dict(case: Case, kind: str) -> None:
    model = adapted(case, kind)
    state = get_peft_model_state_dict(model)
    for low_cpu_mem_usage in (False, True):
        injected = case.build()
        inject_adapter_in_model(config_of(case, kind), injected, low_cpu_mem_usage=low_cpu_mem_usage)
        assert any(parameter.is_meta for parameter in injected.parameters()) == low_cpu_mem_usage
        set_peft_model_state_dict(injected, state, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(case.outputs(injected.eval()), case.outputs(model))
        again = get_peft_model_state_dict(injected)
        assert {key.removeprefix("base_model.model.") for key in state} == set(again)


@every_case
@every_kind
def test_layers_are_found_from_a_state_dict_alone(case: Case, kind: str) -> None:
    model = adapted(case, kind)
    state = {key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(model).items()}
    config = PruneEditConfig(target_modules=["any"])
    injected = inject_adapter_in_model(config, case.build(), state_dict=state)
    set_peft_model_state_dict(injected, state)
    assert torch.equal(case.outputs(injected.eval()), case.outputs(model))


@every_case
@every_kind
def test_modules_to_save_are_saved_and_loaded_with_the_factors(tmp_path, case: Case, kind: str) -> None:
    model = adapted(case, kind, modules_to_save=[case.head])
    head = [p for name, p in model.named_parameters() if "modules_to_save.default" in name]
    assert head
    with torch.no_grad():
        for parameter in head:
            parameter.add_(0.5)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.build(), tmp_path)
    assert agree(case.outputs(loaded), case.outputs(model))
    with loaded.disable_adapter():
        assert torch.equal(case.outputs(loaded), case.outputs(case.build()))
    assert torch.allclose(case.outputs(copy.deepcopy(loaded).merge_and_unload()), case.outputs(model), atol=1e-5)


class NamedLikeFactors(nn.Module):
    """A model whose own modules carry the prefix of this method's parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 20)
        self.prune_edit_head = nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.prune_edit_head(self.first(x))


def named_like_factors() -> NamedLikeFactors:
    torch.manual_seed(0)
    return NamedLikeFactors().eval()


@every_kind
@pytest.mark.parametrize("modules_to_save", [None, ["prune_edit_head"]])
def test_a_base_module_may_be_named_like_the_factors(tmp_path, kind: str, modules_to_save) -> None:
    case = Case("mlp", named_like_factors, ("first", "prune_edit_head"), "prune_edit_head")
    for target in (0,) if modules_to_save else (0, 1):
        model = adapted(case, kind, target=target, modules_to_save=modules_to_save)
        model.save_pretrained(tmp_path / str(target))
        loaded = PeftModel.from_pretrained(case.build(), tmp_path / str(target))
        assert agree(case.outputs(loaded), case.outputs(model))
        if modules_to_save is None:
            assert set(get_base_model_state_dict(loaded)) == set(case.build().state_dict())


@every_case
@every_kind
def test_the_state_dict_of_the_base_is_read_and_written_under_its_own_keys(case: Case, kind: str) -> None:
    model = adapted(case, kind)
    base = case.build()
    state = get_base_model_state_dict(model)
    assert all(torch.equal(state[key], value) for key, value in base.state_dict().items())
    set_base_model_state_dict(model, {key: torch.zeros_like(value) for key, value in state.items()})
    with model.disable_adapter():
        assert not case.outputs(model).any()


@every_case
@every_kind
def test_copies_and_pickles_behave_like_the_original(case: Case, kind: str) -> None:
    model = adapted(case, kind, restrain_on="merge")
    expected = case.outputs(model)
    pickled = pickle.loads(pickle.dumps(model))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), pickled, torch.load(stream, weights_only=False)):
        assert torch.equal(case.outputs(other), expected)
        assert other.restraint_is_pending() == model.restraint_is_pending()
        for parameter in factors(other).values():
            parameter.data.zero_()
        assert torch.equal(case.outputs(model), expected)


@every_kind
def test_a_compiled_model_is_saved_under_the_same_keys(tmp_path, kind: str) -> None:
    case = CASES[0]
    model = adapted(case, kind)
    expected, keys = case.outputs(model), set(get_peft_model_state_dict(model))
    torch.compiler.reset()  # what other tests compiled counts against the limit
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(case.outputs(compiled), expected)
    assert set(get_peft_model_state_dict(compiled, unwrap_compiled=True)) == keys
    compiled.save_pretrained(tmp_path / "outside")
    inside = get_peft_model(torch.compile(case.build(), backend="eager"), config_of(case, kind)).eval()
    fill(inside, kind, "default")
    inside.save_pretrained(tmp_path / "inside")
    for folder, outputs in (("outside", expected), ("inside", case.outputs(inside))):
        assert set(load_file(tmp_path / folder / TENSORS)) == keys
        for base in (case.build(), torch.compile(case.build(), backend="eager")):
            assert agree(case.outputs(PeftModel.from_pretrained(base, tmp_path / folder)), outputs)


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.name)
@every_kind
def test_the_state_dict_of_a_sharded_wrapper_has_the_same_keys_and_values(process_group, case: Case, kind: str) -> None:
    plain = adapted(case, kind)
    wrapped = FullyShardedDataParallel(adapted(case, kind), use_orig_params=True, device_id=torch.device("cpu"))
    state, expected = get_peft_model_state_dict(wrapped), get_peft_model_state_dict(plain)
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)
    loaded = get_peft_model(case.build(), config_of(case, kind)).eval()
    set_peft_model_state_dict(loaded, state)
    assert torch.equal(case.outputs(loaded), case.outputs(plain))


@every_kind
def test_a_model_card_names_the_library_and_the_base(tmp_path, kind: str) -> None:
    for case in CASES[:2]:
        base = case.build()
        if case.name == "gpt2":
            base.config._name_or_path = "someone/tiny"
        model = get_peft_model(base, config_of(case, kind))
        model.save_pretrained(tmp_path / case.name)
        card = (tmp_path / case.name / "README.md").read_text()
        assert "library_name: peft" in card and ("base_model: someone/tiny" in card) == (case.name == "gpt2")


def test_a_file_of_transformers_own_saving_is_the_same_adapter(tmp_path) -> None:
    case = CASES[1]
    model = tiny_gpt2()
    torch.manual_seed(1)
    model.add_adapter(config_of(case, "trained"))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_gpt2(), tmp_path)
    assert torch.equal(case.outputs(loaded), case.outputs(model.eval()))
