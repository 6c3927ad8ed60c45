"""Processor seconds per edit along 10,000 edits of one layer, restrained every 10 and watched after each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from measure import Row, in_seconds
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_prune import PruneEditConfig
from peft_prune.monitoring import Monitor
from peft_prune.spectral import LowRankUpdate

OUT, IN = 1600, 6400
MARKS = (100, 1_000, 5_000, 10_000)
WINDOW = 20
"""Edits before each mark whose times are taken, two restraints among them."""


class _OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(IN, OUT, bias=False)
        with torch.no_grad():
            self.projection.weight.normal_(std=IN**-0.5, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x)


def rows() -> Iterator[Row]:
    """Seconds per edit before each mark against those before the first; between marks edits are added in blocks."""
    config = PruneEditConfig(target_modules=["projection"], restrain_every=10)
    model = get_peft_model(_OneLayer(), config).eval()
    monitor, generator = Monitor(model.base_model), torch.Generator().manual_seed(1)
    monitor.figures()
    done, first = 0, 0.0
    for mark in MARKS:
        while done < mark - WINDOW:
            count = min(500, mark - WINDOW - done)
            _add(model, _edits(model, count, generator), count)
            done += count
        monitor.figures()  # what is set up anew every few hundred edits is set up here
        spent = []
        for _ in range(WINDOW):
            update = _edits(model, 1, generator)
            start = time.process_time()  # of one thread, so that other work on the machine does not count
            _add(model, update, 1)
            monitor.figures()
            spent.append(time.process_time() - start)
        done = mark
        # a restraint falls on every tenth edit: the median of the others and of those with one, in their shares
        own = 0.9 * statistics.median(spent) + 0.1 * statistics.median(sorted(spent)[-2:])
        first = first or own
        yield Row(
            f"processor seconds per edit at {mark:,} edits of a layer of {OUT:,} x {IN:,}",
            f"processor seconds per edit at {MARKS[0]} edits",
            own / first,
            2 if mark == MARKS[-1] else None,
            True,
            in_seconds(own),
            in_seconds(first),
            "restrained every 10 edits, all figures after each",
        )


def _edits(model: PeftModel, count: int, generator: torch.Generator) -> LowRankUpdate:
    """Rank-1 updates of 0.3 σmax(W₀) whose rows have a direction in common, as keys of edits have."""
    ((_, layer),) = model.base_model.edited_layers()
    common = torch.randn(IN, generator=torch.Generator().manual_seed(2))
    left = torch.randn(OUT, count, generator=generator)
    right = torch.randn(count, IN, generator=generator) + 0.3 * common
    size = 0.3 * layer.sigma_max_base()
    return LowRankUpdate(left / left.norm(dim=0) * size, right / right.norm(dim=1, keepdim=True))


def _add(model: PeftModel, update: LowRankUpdate, edits: int) -> None:
    ((name, _),) = model.base_model.edited_layers()
    model.base_model.add_edits({name: update}, edits=edits)
