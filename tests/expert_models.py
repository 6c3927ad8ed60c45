"""Tiny random mixtures of experts, and what they compute, written out once more in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.families import tiny_family

BESIDE_SHARED = ("deepseek_v3", "qwen2_moe")
"""With an expert that all tokens share beside the routed ones."""
MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss", *BESIDE_SHARED)
EXPERTS, CHOSEN, LAYERS = 4, 2, 2
WILLING = {"qwen2_moe": 3}
"""Seeds of random weights that take the edits of the tests, where the first does not."""


def mixture(name: str, seed: int = 0) -> PreTrainedModel:
    """Two layers of four experts, of which two are chosen, with weights of ordinary scale."""
    sizes: dict[str, Any] = {"num_local_experts": EXPERTS, "num_experts": EXPERTS, "num_experts_per_tok": CHOSEN}
    if name in ("gpt_oss", "qwen2_moe"):
        sizes["layer_types"] = ["full_attention"] * LAYERS
    model = tiny_family(name, num_hidden_layers=LAYERS, mlp_only_layers=[], decoder_sparse_step=1, **sizes)
    made = torch.Generator().manual_seed(WILLING.get(name, seed))
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            if parameter.dim() > 1 or "bias" in own:
                scale = 1.0 if "gate" in own or "router" in own else 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=made))
    return model.requires_grad_(False)


def experts_of(model: Any, layer: int) -> Any:
    return model.get_submodule(f"model.layers.{layer}.mlp.experts")


def down(experts: Any, index: int) -> Tensor:
    """W of one expert, (out, in), float64."""
    weight = experts.down_proj.detach()[index].double()
    return weight.T if experts.is_transposed else weight


def dense_key(name: str, experts: Any, index: int, x: Tensor) -> Tensor:
    """What goes into the down projection of an expert for one input, (in,), by its family's formula, in float64."""
    weight = experts.gate_up_proj.detach()[index].double()
    if name == "gpt_oss":
        both = x.double() @ weight + experts.gate_up_proj_bias.detach()[index].double()
        gate, up = both[::2].clamp(max=experts.limit), both[1::2].clamp(-experts.limit, experts.limit)
        return (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
    gate, up = (weight @ x.double()).chunk(2)
    return gate * torch.sigmoid(gate) * up


def dense_output(name: str, experts: Any, x: Tensor, index: Tensor, gates: Tensor, deltas: dict[int, Tensor]) -> Tensor:
    """Σ gate · ((W + ΔW) k + b) of each token, (tokens, out), in float64."""
    rows = []
    for token in range(len(x)):
        total = torch.zeros(experts.down_proj.shape[2 if name == "gpt_oss" else 1], dtype=torch.float64)
        for own, gate in zip(index[token].tolist(), gates[token].double(), strict=True):
            weight = down(experts, own) + deltas.get(own, 0)
            bias = experts.down_proj_bias.detach()[own].double() if name == "gpt_oss" else 0
            total += gate * (weight @ dense_key(name, experts, own, x[token]) + bias)
        rows.append(total)
    return torch.stack(rows)


def calls(experts: Any, run: Any) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """Inputs and outputs of the experts while ``run`` runs."""
    found: list[tuple[tuple[Tensor, ...], Tensor]] = []
    handle = experts.register_forward_hook(lambda module, args, output: found.append((args, output)))
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    return found
