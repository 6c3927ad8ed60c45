"""Processor seconds per edit along 10,000 edits of one layer, restrained every 10 and watched after each."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from measure import Row, in_seconds, processor_seconds
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_prune import PruneEditConfig
from peft_prune.monitoring import Monitor
from peft_prune.spectral import LowRankUpdate

OUT, IN = 1600, 6400
MARKS = (100, 1_000, 1_600, 5_000, 10_000)
WINDOW = 20
"""Edits before each mark whose times are taken, two restraints among them."""

SIZE = 0.2
"""‖ΔW‖₂ of one edit over σmax(W₀): up to 10,000 edits a few directions of their sum exceed σmax(W₀), not hundreds."""

BLOCK = OUT // 8 + 1
"""Edits after which the figures of a large sum are taken around a new one."""


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
        anew = []
        while done < mark - WINDOW:
            left = mark - WINDOW - done
            single = left <= 2 * BLOCK
            count = min(BLOCK, left) if single else min(5 * BLOCK, left - 2 * BLOCK)
            _add(model, _edits(model, count, generator), count)
            spent = processor_seconds(monitor.figures)
            anew += [spent] if single and count == BLOCK else []
            done += count
        adding, looking = [], []
        for _ in range(WINDOW):
            update = _edits(model, 1, generator)
            adding.append(processor_seconds(lambda update=update: _add(model, update, 1)))
            looking.append(processor_seconds(monitor.figures))
        done = mark
        # a restraint falls on every tenth edit
        restrained = statistics.mean(sorted(adding)[-WINDOW // 10 :])
        added, looked = statistics.median(adding), statistics.median(looking)
        restraint = max(restrained - added, 0.0) / 10
        renewed = max(statistics.median(anew) - looked, 0.0) / BLOCK if anew else 0.0
        own = added + restraint + looked + renewed
        first = first or own
        yield Row(
            f"processor seconds per edit at {mark:,} edits of a layer of {OUT:,} x {IN:,}",
            f"processor seconds per edit at {MARKS[0]} edits",
            own / first,
            2 if mark == MARKS[-1] else None,
            True,
            in_seconds(own),
            in_seconds(first),
            f"adding {1e3 * added:.1f} ms, restraint every 10 edits {1e3 * restraint:.1f} ms, all figures after each "
            f"{1e3 * looked:.1f} ms, around a new sum every {BLOCK} edits {1e3 * renewed:.1f} ms",
        )


def _edits(model: PeftModel, count: int, generator: torch.Generator) -> LowRankUpdate:
    """Rank-1 updates of `SIZE` σmax(W₀) whose rows have a direction in common, as keys of edits have."""
    ((_, layer),) = model.base_model.edited_layers()
    common = torch.randn(IN, generator=torch.Generator().manual_seed(2))
    left = torch.randn(OUT, count, generator=generator)
    right = torch.randn(count, IN, generator=generator) + 0.3 * common
    size = SIZE * layer.sigma_max_base()
    return LowRankUpdate(left / left.norm(dim=0) * size, right / right.norm(dim=1, keepdim=True))


def _add(model: PeftModel, update: LowRankUpdate, edits: int) -> None:
    ((name, _),) = model.base_model.edited_layers()
    model.base_model.add_edits({name: update}, edits=edits)
