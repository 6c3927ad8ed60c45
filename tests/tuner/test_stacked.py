"""On one layer with another method, and over another PEFT model."""

from __future__ import annotations

import itertools

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn

from peft_prune import PruneEditConfig
from tests.tiny import tiny_llama
from tests.tuner.test_edits import INPUTS

X = torch.linspace(-1, 1, 48).reshape(3, 16)

CONFIGS = {
    "LORA": lambda targets: LoraConfig(target_modules=targets, init_lora_weights=False),
    "LOHA": lambda targets: LoHaConfig(target_modules=targets, init_weights=False),
    "LOKR": lambda targets: LoKrConfig(target_modules=targets, init_weights=False),
    "IA3": lambda targets: IA3Config(target_modules=targets, feedforward_modules=[], init_ia3_weights=False),
    "PRUNE_EDIT": lambda targets: PruneEditConfig(target_modules=targets, r=4, init_weights=False),
}
OTHERS = [name for name in CONFIGS if name not in ("PRUNE_EDIT", "IA3")]
PAIRS = [pair for other in OTHERS for pair in itertools.permutations(("PRUNE_EDIT", other))]


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x)


def stacked(inner: str, outer: str) -> tuple[PeftModel, nn.Parameter]:
    """A method over another on one layer, and the base weight."""
    base = OneLayer()
    weight = base.lin.weight
    torch.manual_seed(1)
    return get_peft_model(get_peft_model(base, CONFIGS[inner](["lin"])), CONFIGS[outer](["lin"])).eval(), weight


@pytest.mark.parametrize(("inner", "outer"), [*PAIRS, ("PRUNE_EDIT", "PRUNE_EDIT")])
@pytest.mark.parametrize("rounds", [1, 3])
def test_unmerging_gives_the_base_back_and_merging_changes_no_output(inner: str, outer: str, rounds: int) -> None:
    model, weight = stacked(inner, outer)
    before, base = model(X), weight.detach().clone()
    for _ in range(rounds):
        model.merge_adapter()
        assert torch.allclose(model(X), before, atol=1e-5)
        assert not torch.allclose(weight, base, atol=1e-3)
        model.unmerge_adapter()
    assert torch.allclose(model(X), before, atol=1e-5)
    assert torch.allclose(weight, base, atol=1e-6)


@pytest.mark.parametrize("inner", OTHERS)
def test_merging_and_unloading_takes_in_what_lies_beneath(inner: str) -> None:
    model, _ = stacked(inner, "PRUNE_EDIT")
    expected = model(X)
    merged = model.merge_and_unload()
    assert torch.allclose(merged(X), expected, atol=1e-5)
    assert not any(hasattr(module, "base_layer") for module in merged.modules())


def test_alone_a_layer_is_given_back_bit_for_bit_after_training_while_merged() -> None:
    model = get_peft_model(OneLayer(), CONFIGS["PRUNE_EDIT"](["lin"])).eval()
    base = OneLayer().lin.weight
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(model.base_model.model.lin.weight, base)


@pytest.mark.parametrize("targets", [["q_proj"], ["down_proj"]])
def test_what_is_saved_over_a_peft_model_loads_over_it_and_over_the_base_alone(tmp_path, targets) -> None:
    torch.manual_seed(3)
    get_peft_model(tiny_llama(), CONFIGS["LORA"](targets)).save_pretrained(tmp_path / "lora")

    def over_lora() -> PeftModel:
        return PeftModel.from_pretrained(tiny_llama(), tmp_path / "lora", adapter_name="lora")

    config = PruneEditConfig(r=4, init_weights=False)
    model = get_peft_model(over_lora(), config, adapter_name="edits").eval()
    model.save_pretrained(tmp_path, selected_adapters=["edits"])
    again = PeftModel.from_pretrained(over_lora(), tmp_path / "edits", adapter_name="edits").eval()
    assert torch.allclose(again(INPUTS).logits, model(INPUTS).logits, atol=1e-6)
    alone = PeftModel.from_pretrained(tiny_llama(), tmp_path / "edits").eval()
    deltas = [dict(m.base_model.edited_layers()) for m in (model, alone)]
    for own, other in zip(deltas[0].values(), deltas[1].values(), strict=True):
        expected = own.effective_update("edits").dense()
        assert torch.equal(other.effective_update("default").dense(), expected) and bool(expected.any())
