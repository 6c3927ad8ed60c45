"""What a module reads and how the loss depends on what it gives, at the tokens of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.decoder import unwrapped
from ..models.inference import by_rows
from .target_likelihood import TargetBatch, target_log_probs


@dataclass(frozen=True)
class Traced:
    """A batch as one module sees it: everything laid out as (rows, positions, width), float32.

    Args:
        inputs: What the module reads.
        gradients: Of the sum over the rows of their mean negative log-likelihoods, by what the module gives.
        outputs: What the module gives.
    """

    inputs: Tensor
    gradients: Tensor
    outputs: Tensor


def traced(model: Any, batch: TargetBatch, modules: Sequence[str]) -> tuple[Mapping[str, Traced], tuple[float, ...]]:
    """One pass forward and one back: each module's part, and the least probability of each request's targets."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    probes: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[name], outputs[name] = args[0].detach().float(), output.detach().float()
            probes[name] = torch.zeros_like(output, dtype=torch.float32, requires_grad=True)
            return output + probes[name].to(output.dtype)

        return hook

    with torch.enable_grad(), ExitStack() as stack:
        for name in modules:
            module = unwrapped(model).get_submodule(name)
            stack.callback(module.register_forward_hook(watch(name)).remove)
        scores = target_log_probs(model, batch)
        found = torch.autograd.grad(-scores.sum(), [probes[name] for name in modules])
    rows = len(batch.ids)
    parts = {
        name: Traced(by_rows(inputs[name], rows), by_rows(gradient, rows), by_rows(outputs[name], rows))
        for name, gradient in zip(modules, found, strict=True)
    }
    return parts, batch.by_request(scores.detach().exp())


def gradients(
    model: Any, batch: TargetBatch, modules: Sequence[str]
) -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], tuple[float, ...]]:
    """x (tokens, in), δ (tokens, out) and the request of each token whose δ is not zero, for each module, float32."""
    parts, probabilities = traced(model, batch, modules)
    found = {}
    for name, part in parts.items():
        delta = part.gradients
        reached = batch.mask.bool().to(delta.device) & (delta != 0).any(-1)
        found[name] = part.inputs[reached], delta[reached], batch.owner.to(delta.device)[reached.nonzero()[:, 0]]
    return found, probabilities
