"""What a history costs as it grows: resuming, undoing, and looking for contradictions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import Row, in_seconds, processor_seconds
from peft import get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.builtin import load_builtin_model
from peft_prune.editors import Edit, Editor, Prepared, SecondMoments
from peft_prune.session import EditRecord, EditSession, Factors, History
from peft_prune.session.records import BatchRecord
from peft_prune.spectral import LowRankUpdate

MODULE, WIDTH = "transformer.h.0.mlp.c_proj", 768
COUNTS = (100, 1_000, 5_000)


@dataclass(frozen=True)
class _NoHyperparameters:
    layers: tuple[int, ...] = (0,)


class _NoEditor(Editor):
    """Computes nothing: what is measured begins after the search for values."""

    name, pretty_name, paper, year, url = "none", "None", "none", 2024, "none"
    hyperparameters_class = _NoHyperparameters

    def default_layers(self, depth: int) -> tuple[int, ...]:
        return (0,)

    def prepare(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, statistics: SecondMoments | None = None
    ) -> Prepared:
        return Prepared((0,))

    def compute(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        prepared: Prepared,
        earlier: Mapping[str, Tensor] | None = None,
    ) -> Edit:
        raise NotImplementedError


def rows() -> Iterator[Row]:
    """Processor seconds at 1,000 and at 5,000 edits against those at a tenth and a fifth of them."""
    _, tokenizer = load_builtin_model()
    base = GPT2LMHeadModel(GPT2Config(n_embd=WIDTH, n_layer=1, n_head=12, vocab_size=tokenizer.vocab_size)).eval()
    for kind, with_keys in (("", False), (", with keys", True)):
        with tempfile.TemporaryDirectory() as folder:
            found = {n: _measured(base, tokenizer, Path(folder) / f"{n}.db", n, with_keys) for n in COUNTS}
        for what in ("resume", "undo one edit", "look for a contradiction"):
            for few, many in pairwise(COUNTS):
                one, other = found[few][what], found[many][what]
                grown = many / few
                yield Row(
                    f"{what} at {many:,} edits{kind}",
                    f"at {few:,} edits",
                    other / one,
                    2 * grown if what != "look for a contradiction" else 3.0,
                    True,
                    in_seconds(other),
                    in_seconds(one),
                    f"processor seconds, one layer of {WIDTH} x {4 * WIDTH}; linear would be {grown:g} x",
                )


def _measured(base: Any, tokenizer: Any, path: Path, count: int, with_keys: bool) -> dict[str, float]:
    _write(base, tokenizer, path, count, with_keys)
    sessions: list[EditSession] = []

    def resume() -> None:
        options: dict[str, Any] = {"monitor": False, "look_again": False}
        sessions.append(EditSession.resume(path, base, tokenizer, _NoEditor(), **options))
        if len(sessions) < 3:
            _closed(sessions[-1])

    found = {"resume": median(processor_seconds(resume) for _ in range(3))}
    run = sessions[-1]
    undone = iter(range(2, 5))
    found["undo one edit"] = median(processor_seconds(lambda: run.undo(next(undone))) for _ in range(3))
    asked = _request(count // 2, "another")
    found["look for a contradiction"] = _of_one(lambda: run.conflicts(asked), 200)
    _closed(run)
    return found


def _of_one(call: Callable[[], Any], times: int) -> float:
    return processor_seconds(lambda: [call() for _ in range(times)]) / times


def _closed(run: EditSession) -> None:
    run.close()
    run.model.unload()


def _write(base: Any, tokenizer: Any, path: Path, count: int, with_keys: bool) -> None:
    """A history of so many edits in batches of ten, as a session would have written it."""
    config = PruneEditConfig(task_type="CAUSAL_LM", layers_to_transform=[0], restraint="none")
    _closed(EditSession(get_peft_model(base, config).eval(), tokenizer, _NoEditor(), history=path, monitor=False))
    generator = torch.Generator().manual_seed(0)
    with History.open(path) as log:
        for batch, first in enumerate(range(1, count + 1, 10), start=1):
            numbers = range(first, first + 10)
            records = [EditRecord(n, batch, _request(n), "applied", appended=batch, leader=n) for n in numbers]
            factors = {n: _drawn(generator, with_keys) for n in numbers}
            log.record(BatchRecord(batch, 0.0, records, factors=factors))


def _request(number: int, target: str = "target") -> EditRequest:
    return EditRequest("{} is in", f"subject {number}", target)


def _drawn(generator: torch.Generator, with_keys: bool) -> Factors:
    up, down, key = (torch.randn(shape, generator=generator) for shape in ((WIDTH, 1), (1, 4 * WIDTH), (1, 4 * WIDTH)))
    return Factors({MODULE: LowRankUpdate(up, down)}, {MODULE: key} if with_keys else {})
