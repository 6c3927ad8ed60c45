"""Experts whose weights are fused into 3-D parameters: the down projection of each as a linear map, keys and gates."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import has_offloaded_params
from torch import Tensor, nn

PLACE = "down"
"""Below the experts, where the down projection of each stands by its number."""

SHARED, ROUTED = "shared", "routed"
CHOICES = (SHARED, ROUTED)
"""Which experts of a mixture are edited: the one that all tokens share, and routed ones where there is none; or routed
ones everywhere."""

_NAME = re.compile(rf"(?P<experts>.+)\.{PLACE}\.(?P<index>\d+)")
_STATES = "has_gate has_bias has_post_expert_norm is_transposed"
"""What transformers' ``use_experts_implementation`` says of a class of experts."""


class ExpertMap(nn.Module):
    """The down projection of one of several fused experts, (out, in): a view, without parameters of its own.

    Args:
        experts: The experts.
        index: Which of them.
    """

    def __init__(self, experts: nn.Module, index: int) -> None:
        super().__init__()
        self._of = (experts,)  # no child: it is the parent
        self.index = index
        self.out_features, self.in_features = self._view().shape

    @property
    def experts(self) -> nn.Module:
        """The fused experts that it belongs to."""
        return self._of[0]

    @property
    def weight(self) -> nn.Parameter:
        """The weight, (out, in), in the memory of the experts'."""
        return nn.Parameter(self._view(), requires_grad=False)

    def write(self, weight: Tensor) -> None:
        """Make ``weight``, (out, in), the expert's."""
        self._view().copy_(weight)

    def _view(self) -> Tensor:
        experts: Any = self.experts
        weight = experts.down_proj.detach()[self.index]
        return weight.T if experts.is_transposed else weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self._view())


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds experts that transformers fuses: a 3-D ``down_proj`` and how it is computed with."""
    weight = vars(module).get("_parameters", {}).get("down_proj")
    return isinstance(weight, Tensor) and weight.dim() == 3 and hasattr(module, "is_transposed")


def why_not(experts: Any) -> str | None:
    """Why the experts of a module cannot be edited, as far as it is seen without running them; None where they can."""
    weight = experts.down_proj
    if not all(hasattr(experts, name) for name in _STATES.split()):
        return f"{type(experts).__name__} does not say how it computes"
    if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.element_size() < 2:
        return f"their weights are held as {type(weight).__name__} of {weight.dtype}; load them dequantized, unsharded"
    if experts.has_post_expert_norm:
        return "a norm stands behind each expert, so that its output is not linear in its down projection"
    if getattr(experts, "_is_expert_parallel", False):
        return "they are spread over several processes"
    if has_offloaded_params(experts):
        return "they are offloaded; load them onto a device"
    return None


@torch.no_grad()
def computes(experts: Any) -> bool:
    """Whether the experts' outputs on two random rows are Σ gate · (W k + b) with the keys that `inner` gives."""
    weight = experts.down_proj
    if weight.is_meta:
        return True  # nothing can be tried
    made = torch.Generator().manual_seed(0)
    count, width = weight.shape[0], weight.shape[1 if not experts.is_transposed else 2]
    x = torch.randn(2, width, generator=made).to(weight.device, weight.dtype)
    index = torch.stack([torch.randperm(count, generator=made)[:2] for _ in x]).to(weight.device)
    gates = torch.rand(index.shape, generator=made).to(weight.device, weight.dtype)
    wanted = torch.zeros(2, width, dtype=torch.float64, device=weight.device)
    bias = experts.down_proj_bias if experts.has_bias else None
    for row in range(2):
        for slot, own in enumerate(index[row].tolist()):
            view = ExpertMap(experts, own).weight.double()
            output = view @ inner(experts, x[row : row + 1], own)[0].double()
            wanted[row] += gates[row, slot].double() * (output if bias is None else output + bias[own].double())
    try:
        found = experts(x, index, gates).double()
    except Exception:  # whatever a class raises that wants something else
        return False
    close = 1e-4 if weight.element_size() >= 4 else 3e-2
    return found.shape == wanted.shape and bool((found - wanted).norm() <= close * wanted.norm())


def inner(experts: Any, x: Tensor, index: int) -> Tensor:
    """What goes into the down projection of one expert, (rows, in), for inputs ``x`` of the experts, (rows, hidden)."""
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    weight = getattr(experts, name)[index]
    y = x @ (weight if experts.is_transposed else weight.T)
    if experts.has_bias:
        y = y + getattr(experts, name + "_bias")[index]
    return experts._apply_gate(y) if experts.has_gate else experts.act_fn(y)


def routed(experts: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """What one call of the experts is given: inputs (tokens, hidden), chosen experts and gates (tokens, chosen)."""
    given = inspect.signature(type(experts).forward).bind(experts, *args, **kwargs).arguments
    x, index, gates = list(given.values())[1:4]
    return tuple(one.reshape(-1, one.shape[-1]) for one in (x, index, gates))


def by_expert(index: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each expert that a token is routed to, with those tokens and the places at which they name it."""
    for own in index.unique().tolist():
        rows, slots = torch.where(index == own)
        yield own, rows, slots


def weighted_keys(experts: Any, x: Tensor, index: Tensor, gates: Tensor) -> Iterator[tuple[int, Tensor]]:
    """gate · k of every token at each expert, (tokens, in) float32; 0 for those that are not routed there.

    The output of the experts is Σ W (gate · k) and biases: the experts side by side are one linear map of these.
    """
    for own, rows, slots in by_expert(index):
        keys = inner(experts, x[rows], own).float() * gates[rows, slots, None].float()
        yield own, keys.new_zeros(len(x), keys.shape[1]).index_copy(0, rows, keys)


def expert_names(name: str, experts: Any) -> list[str]:
    """Names of the down projections of the experts of this name, one by one."""
    return [f"{name}.{PLACE}.{index}" for index in range(experts.down_proj.shape[0])]


def place_of(name: str) -> tuple[str, int] | None:
    """Name of the experts, and number of the one, whose down projection this name is of; None for other names."""
    found = _NAME.fullmatch(name)
    return (found["experts"], int(found["index"])) if found else None
