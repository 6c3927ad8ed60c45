"""An adapter over fused experts: one update for each of them, with everything that holds for a linear layer."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, get_peft_model

from peft_prune import PruneEditConfig, UnsupportedModelError
from peft_prune.errors import AdapterError, MergeError
from peft_prune.export import export_lora
from peft_prune.models.fingerprint import base_fingerprint, same_base
from tests.expert_models import BESIDE_SHARED, EXPERTS, MIXTURES, calls, dense_output, down, experts_of, mixture
from tests.tiny import agree, random_update
from tests.tuner.test_edits import dense_log

IDS = torch.arange(24).reshape(2, 12)
PLACE = "model.layers.1.mlp.experts"
every_family = pytest.mark.parametrize("family", MIXTURES)


def attached(base, **config):
    values = {"layers_to_transform": [1], "experts": "routed", "restraint": "none", **config}
    return get_peft_model(base, PruneEditConfig(**values)).eval()


def edits(model, experts=(0, 2), scale=0.3):
    """Updates of some of the experts, by name."""
    layers = dict(model.edited_layers())
    sides = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    return {
        f"{PLACE}.down.{index}": random_update(sides[f"{PLACE}.down.{index}"], scale=scale, seed=index)
        for index in experts
    }


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@every_family
def test_the_output_is_that_of_the_edited_experts_in_float64(family: str) -> None:
    base = mixture(family)
    before, keys = logits(base), set(base.state_dict())
    model = attached(base)
    assert [name for name, _ in model.edited_layers()] == [f"{PLACE}.down.{index}" for index in range(EXPERTS)]
    assert torch.equal(logits(model), before)
    updates = edits(model)
    model.add_edits(updates)
    ((args, output),) = calls(experts_of(base, 1), lambda: model(IDS))
    deltas = {int(name[-1]): update.dense().double() for name, update in updates.items()}
    expected = dense_output(family, experts_of(base, 1), *args, deltas)
    assert float((output.double() - expected).norm() / expected.norm()) < 1e-5
    assert not torch.allclose(logits(model), before, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert {name for name in base.state_dict() if "prune_edit" not in name} == keys


@every_family
def test_merged_unmerged_reloaded_and_unloaded_models_agree(tmp_path, family: str) -> None:
    base = mixture(family)
    untouched, before = copy.deepcopy(base), logits(base)
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    model = attached(base, restraint="log", alpha=1.2, restrain_on="merge")
    updates = edits(model, scale=8.0)
    model.add_edits(updates)
    layers = dict(model.edited_layers())
    base_of = {name: down(experts_of(base, 1), int(name[-1])) for name in updates}
    model.save_pretrained(tmp_path)
    for name, update in updates.items():
        expected = dense_log(update.dense().double(), base_of[name], 1.2)
        found = layers[name].effective_update("default").dense().double()
        assert torch.allclose(found, expected, atol=1e-4 * float(update.dense().norm()))
        values = torch.linalg.svdvals(base_of[name] + expected)
        own = layers[name].figures("default").condition.condition_number
        assert own == pytest.approx(float(values[0] / values[-1]), rel=1e-3)
    unmerged = logits(model)
    assert agree(logits(PeftModel.from_pretrained(untouched, tmp_path, strict_base=True).eval()), unmerged)
    print_of = base_fingerprint(model)
    model.merge_adapter(safe_merge=True)
    assert agree(logits(model), unmerged) and same_base(base_fingerprint(model), print_of)
    with model.disable_adapter():  # which unmerges, as everywhere in PEFT
        assert torch.equal(logits(model), before)
    model.merge_adapter()
    model.unmerge_adapter()
    assert all(torch.equal(base.state_dict()[name], value) for name, value in weights.items())
    merged = model.merge_and_unload()
    assert set(merged.state_dict()) == set(weights) and agree(logits(merged), unmerged)
    changed = [name for name, value in weights.items() if not torch.equal(merged.state_dict()[name], value)]
    assert changed == [f"{PLACE}.down_proj"]


def test_unloading_leaves_nothing_behind() -> None:
    base = mixture("mixtral")
    modules, before = [name for name, _ in base.named_modules()], logits(base)
    model = attached(base)
    model.add_edits(edits(model))
    plain = model.unload()
    assert [name for name, _ in plain.named_modules()] == modules and torch.equal(logits(plain), before)
    again = attached(plain)
    assert torch.equal(logits(again), before)


def test_several_adapters_scales_copies_and_half_precision() -> None:
    base = mixture("qwen3_moe").to(torch.bfloat16)
    model = attached(base)
    updates = edits(model)
    model.add_edits(updates)
    own = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), own)
    model.add_adapter("second", PruneEditConfig(layers_to_transform=[1], restraint="none"))
    model.set_adapter("second")
    before = logits(model)
    model.add_edits({name: update.scaled(2.0) for name, update in updates.items()})
    doubled = logits(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), own)
    model.base_model.set_scale("default", 2.0)
    assert agree(logits(model), doubled)
    model.base_model.set_scale("default", 1.0)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


def test_a_batch_with_an_adapter_for_each_row_is_refused() -> None:
    model = attached(mixture("mixtral"))
    model.add_edits(edits(model))
    with pytest.raises(ValueError, match="see tokens and no rows"), torch.no_grad():
        model(IDS, adapter_names=["default", "__base__"])


def test_an_update_that_a_merge_would_round_away_is_undone_in_every_expert() -> None:
    base = mixture("gpt_oss").to(torch.bfloat16)
    model = attached(base)
    model.add_edits({**edits(model, (0,), scale=1.0), **edits(model, (3,), scale=1e-6)})
    weight = experts_of(base, 1).down_proj.clone()
    for act in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=re.escape(f"{PLACE}.down.3")):
            act()
        assert torch.equal(experts_of(base, 1).down_proj, weight)


@pytest.mark.parametrize("family", BESIDE_SHARED)
def test_a_shared_expert_or_the_routed_ones_beside_it_are_taken_in_as_is_asked(family: str) -> None:
    shared = {"deepseek_v3": "shared_experts", "qwen2_moe": "shared_expert"}[family]
    model = get_peft_model(mixture(family), PruneEditConfig(layers_to_transform=[1]))
    assert [name for name, _ in model.edited_layers()] == [f"model.layers.1.mlp.{shared}.down_proj"]
    everywhere = get_peft_model(mixture(family), PruneEditConfig(experts="routed"))
    dense = ["model.layers.0.mlp.down_proj"] if family == "deepseek_v3" else []
    assert [name for name, _ in everywhere.edited_layers() if ".down." not in name] == dense
    assert {f"{PLACE}.down.{index}" for index in range(EXPERTS)} <= dict(everywhere.edited_layers()).keys()
    with pytest.raises(ValueError, match="experts: 'all' is not one of shared, routed"):
        PruneEditConfig(experts="all")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda experts: setattr(experts, "has_post_expert_norm", True), "a norm stands behind each expert"),
        (lambda experts: setattr(experts, "act_fn", torch.nn.Tanh()), None),
        (lambda experts: setattr(experts, "_is_expert_parallel", True), "spread over several processes"),
        (lambda experts: setattr(experts, "forward", lambda x, index, gates: x), "computes something else"),
    ],
)
def test_experts_that_compute_something_else_are_refused_before_any_work(change, reason) -> None:
    base = mixture("mixtral")
    change(experts_of(base, 1))
    modules = [name for name, _ in base.named_modules()]
    if reason is None:  # another activation is what such experts compute with
        attached(base)
        return
    with pytest.raises((UnsupportedModelError, ValueError), match=reason):
        attached(base)
    assert [name for name, _ in base.named_modules()] == modules


def test_offloaded_experts_are_refused() -> None:
    base = cpu_offload(mixture("olmoe"), execution_device=torch.device("cpu"))
    with pytest.raises((UnsupportedModelError, ValueError), match="they are offloaded; load them onto a device"):
        attached(base)


def test_what_has_no_place_for_an_expert_says_so(tmp_path) -> None:
    model = attached(mixture("mixtral"))
    model.add_edits(edits(model))
    with pytest.raises(AdapterError, match=r"one of several fused experts.*merge the adapter"):
        export_lora(model, tmp_path / "lora")
    assert not any(tmp_path.iterdir())
