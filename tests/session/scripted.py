"""An editor whose updates are drawn by chance, so that sessions of thousands of edits are cheap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.editors import Edit, Editor, Prepared, SecondMoments
from peft_prune.session import EditSession
from peft_prune.spectral import LowRankUpdate
from tests.talking import WORDS, spaced_tokenizer
from tests.tiny import tiny_gpt2

MODULE = "transformer.h.1.mlp.c_proj"


@dataclass(frozen=True)
class Layers:
    """The one hyperparameter."""

    layers: tuple[int, ...] = (1,)
    contexts: tuple[str, ...] = field(default=("",))


class Scripted(Editor):
    """Rank-one updates that depend on the subject alone, with keys, and without a second try."""

    name, pretty_name, paper, year, url = "scripted", "Scripted", "none", 2024, "none"
    hyperparameters_class = Layers

    def default_layers(self, depth: int) -> tuple[int, ...]:
        return (1,)

    def prepare(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, statistics: SecondMoments | None = None
    ) -> Prepared:
        return Prepared((1,))

    def compute(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        prepared: Prepared,
        earlier: Mapping[str, Tensor] | None = None,
    ) -> Edit:
        parts = [drawn(request.subject) for request in requests]
        update = LowRankUpdate(torch.cat([p.B for p in parts], dim=1), torch.cat([p.A for p in parts]))
        owners = {MODULE: tuple(range(len(requests)))}
        return Edit(tuple(requests), {MODULE: update}, owners=owners, keys={MODULE: update.A.clone()})


def drawn(subject: str) -> LowRankUpdate:
    """The update of a subject, B (16, 1) and A (1, 64)."""
    generator = torch.Generator().manual_seed(crc32(subject.encode()))
    return LowRankUpdate(0.05 * torch.randn(16, 1, generator=generator), 0.05 * torch.randn(1, 64, generator=generator))


def request(number: int) -> EditRequest:
    """One of 8,000 requests on different subjects."""
    names = [WORDS[number // 20**place % 20] for place in range(3)]
    return EditRequest("note {}", " ".join(names), "ten")


def session(history: Path | None = None, **config: Any) -> EditSession:
    """A session that keeps whatever it edits."""
    values = {"layers_to_transform": [1], "restraint": "clip", "restrain_every": 4, **config}
    model = get_peft_model(tiny_gpt2(), PruneEditConfig(**values)).eval()
    return EditSession(model, spaced_tokenizer(), Scripted(), history=history, on_failure="keep", monitor=False)


def resumed(history: Path) -> EditSession:
    """The same, gone on with."""
    return EditSession.resume(history, tiny_gpt2(), spaced_tokenizer(), Scripted(), on_failure="keep", monitor=False)
