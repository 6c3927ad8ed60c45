"""Three tiny models and two kinds of adapter, for what PEFT asks of every method on linear layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_prune import PruneEditConfig
from tests.tiny import random_update, tiny_gpt2, tiny_llama


class TinyMLP(nn.Module):
    """A model without a transformers configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 20)
        self.second = nn.Linear(20, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def tiny_mlp(seed: int = 0, dtype: torch.dtype = torch.float32) -> TinyMLP:
    torch.manual_seed(seed)
    return TinyMLP().to(dtype).eval()


@dataclass(frozen=True)
class Case:
    """A model, what to feed it, and which of its modules to adapt."""

    name: str
    build: Callable[..., nn.Module]
    targets: tuple[str, str]
    head: str

    def outputs(self, model: nn.Module) -> Tensor:
        """Outputs for a fixed input, without a graph."""
        with torch.no_grad():
            return self.differentiable_outputs(model)

    def differentiable_outputs(self, model: nn.Module) -> Tensor:
        if self.name != "mlp":
            return model(torch.tensor([[3, 14, 15, 9, 26, 5], [8, 2, 7, 18, 28, 1]])).logits
        dtype = next(model.parameters()).dtype
        return model(torch.linspace(-2, 2, 50, dtype=dtype).reshape(5, 10))


CASES = [
    Case("mlp", tiny_mlp, ("first", "second"), "head"),
    Case("gpt2", tiny_gpt2, ("mlp.c_proj", "attn.c_attn"), "lm_head"),
    Case("llama", tiny_llama, ("mlp.down_proj", "q_proj"), "lm_head"),
]
KINDS = ("edited", "trained")


def config_of(case: Case, kind: str, target: int = 0, **config) -> PruneEditConfig:
    """Rank 0 for an adapter that will be edited, random factors of rank 8 for one that is trained."""
    initial = {"r": 8, "init_weights": False} if kind == "trained" else {}
    return PruneEditConfig(**{"target_modules": [case.targets[target]], **initial, **config})


def adapted(case: Case, kind: str, adapter_name: str = "default", target: int = 0, **config) -> PeftModel:
    """The case's model with one adapter that changes its outputs."""
    torch.manual_seed(1)
    model = get_peft_model(case.build(), config_of(case, kind, target, **config), adapter_name).eval()
    fill(model, kind, adapter_name)
    return model


def add(model: PeftModel, case: Case, kind: str, adapter_name: str, target: int = 0, **config) -> None:
    """Add another adapter, with other factors than the first."""
    torch.manual_seed(2)
    model.add_adapter(adapter_name, config_of(case, kind, target, **config))
    fill(model, kind, adapter_name, seed=50)
    model.eval()


def fill(model: PeftModel, kind: str, adapter_name: str, seed: int = 0) -> None:
    """Two edits into every layer, or nothing where the factors are random already."""
    if kind == "trained":
        return
    for name, layer in list(model.base_model.edited_layers(adapter_name)):
        for offset in range(2):
            shape = (layer.out_features, layer.in_features)
            update = random_update(shape, scale=0.1, seed=seed + offset)
            model.base_model.add_edits({name: update}, adapter_name=adapter_name)


def factors(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The adapter's factors by parameter name."""
    ending = f".{adapter_name}.weight"
    return {n: p for n, p in model.named_parameters() if ".prune_edit_" in n and n.endswith(ending)}


def trainable(model: nn.Module) -> set[str]:
    """Names of the parameters that an optimizer would get."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
