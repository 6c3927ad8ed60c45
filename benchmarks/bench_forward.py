"""What an unmerged adapter costs at inference, 4096 -> 14336, beside PEFT's LoRA with the same factors."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measure import Row, in_seconds, seconds
from peft import LoraConfig, get_peft_model
from torch import nn

from peft_prune import PruneEditConfig
from peft_prune.spectral import LowRankUpdate

IN, OUT = 4096, 14336
RANKS = (16, 128, 1024)
LORA = "PEFT's LoRA, the same factors"
BASE = "the layer without an adapter"
MIXED_ROWS = 8


class OneLayer(nn.Module):
    """A model of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(IN, OUT, bias=False)

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.layer(x)


@torch.inference_mode()
def rows() -> Iterator[Row]:
    """One adapter for one token and for 512, and a mixed batch of 8 rows of 16 tokens; about five minutes."""
    base = OneLayer().eval()
    for rank in RANKS:
        ours, lora = _adapted(base, rank)
        for tokens, repeats in ((1, 101), (512, 15)):
            x = torch.randn(1, tokens, IN)
            what = f"forward at rank {rank:,}, {tokens} token{'s' if tokens > 1 else ''}"
            yield from _rows(what, base, x, ours, lora, repeats)
    ours, lora = _adapted(base, 128, 128)
    names = ["first", "__base__", "second", "first", "__base__", "__base__", "second", "first"]
    x = torch.randn(MIXED_ROWS, 16, IN)
    what = "forward of a mixed batch of 8 rows, two adapters of rank 128 and the base"
    yield from _rows(what, base, x, ours, lora, 31, adapter_names=names)


def _rows(what: str, base: nn.Module, x: torch.Tensor, ours: Any, lora: Any, repeats: int, **options: Any) -> Any:
    # through the tuners, as a layer of a large model is called
    calls: list[Callable[[], Any]] = [
        lambda: ours(x, **options),
        lambda: lora(x, **options),
        lambda: base(x),
    ]
    error = float((calls[0]() - calls[1]()).norm() / calls[1]().norm())
    times = [[seconds(call) for call in _turned(calls, turn)] for turn in range(repeats + 1)][1:]
    times = [_turned(row, -turn - 1) for turn, row in enumerate(times)]
    own, other, plain = (statistics.median(column) for column in zip(*times, strict=True))
    note, holds = f"relative difference {error:.0e}", error <= 1e-5
    against_lora = statistics.median(row[0] / row[1] for row in times)
    against_base = statistics.median(row[0] / row[2] for row in times)
    lora_against_base = statistics.median(row[1] / row[2] for row in times)
    yield Row(what, LORA, against_lora, 1.02, True, in_seconds(own), in_seconds(other), note, holds)
    yield Row(what, BASE, against_base, None, True, in_seconds(own), in_seconds(plain), f"LoRA {lora_against_base:.2f}")


def _turned(values: list[Any], by: int) -> list[Any]:
    """The values from another one on, so that none is always the first."""
    by %= len(values)
    return values[by:] + values[:by]


def _adapted(base: OneLayer, *ranks: int) -> tuple[Any, Any]:
    """The layer with the same adapters as PRUNE_EDIT and as LoRA, over one weight."""
    ours = lora = None
    for name, rank in zip(("first", "second"), ranks, strict=False):
        edit = PruneEditConfig(target_modules=["layer"], restraint="none", inference_mode=True)
        plain = LoraConfig(r=rank, lora_alpha=rank, target_modules=["layer"], inference_mode=True)
        if ours is None or lora is None:
            ours, lora = get_peft_model(_sharing(base), edit, name), get_peft_model(_sharing(base), plain, name)
        else:
            ours.add_adapter(name, edit)
            lora.add_adapter(name, plain)
        update = LowRankUpdate(torch.randn(OUT, rank) / 100, torch.randn(rank, IN) / 100)
        ours.base_model.add_edits({"layer": update}, adapter_name=name)
        layer = lora.base_model.model.layer
        layer.lora_A[name].weight.data.copy_(update.A)
        layer.lora_B[name].weight.data.copy_(update.B)
    assert ours is not None and lora is not None
    return ours.eval(), lora.eval()


def _sharing(base: OneLayer) -> OneLayer:
    with torch.device("meta"):
        model = OneLayer()
    model.layer.weight = base.layer.weight
    return model.eval()
