"""What a session adds to the time of its edits, on a random GPT-2 of the size of GPT-2 small."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from bench_editors import MEMIT_LAYERS, SHARED
from measure import Row, in_seconds
from peft import get_peft_model
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from peft_prune import PruneEditConfig, load_requests
from peft_prune.editors import collect_second_moments, get_editor
from peft_prune.models.mlp import mlp_output_module
from peft_prune.monitoring import Monitor, SessionCallback
from peft_prune.session import EditSession


class _Clock(SessionCallback):
    """When each batch began and ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_batch_begin(self, session: Any, requests: Any) -> None:
        self._start = time.perf_counter()

    def on_batch_end(self, session: Any, report: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def rows() -> Iterator[Row]:
    """The monitor's share of the time of MEMIT's batches of ten, set-up left out."""
    if not SHARED.is_dir():
        print(f"{SHARED} is missing; set PEFT_PRUNE_SHARED for the rows of the session")
        return
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "counterfact-gpt2-5m")
    base = GPT2LMHeadModel(GPT2Config()).eval()
    requests = load_requests(SHARED / "data" / "counterfact-dev-250.json", limit=40)
    texts = [f"{request.text} {request.target_true}." for request in requests]
    modules = [mlp_output_module(base, layer)[0] for layer in MEMIT_LAYERS]
    moments = collect_second_moments(base, tokenizer, texts, modules, progress=False)
    config = PruneEditConfig(restraint="log", layers_to_transform=list(MEMIT_LAYERS))
    model = get_peft_model(base, config).eval()
    editor = get_editor("memit", layers=MEMIT_LAYERS, mom2_shrinkage=0.01)
    clock = _Clock()
    # a random model's edits need not take; what is kept gives the monitor its rank
    session = EditSession(
        model, tokenizer, editor, statistics=moments, callbacks=[clock], on_failure="keep", monitor=False
    )
    start = time.perf_counter()
    monitor = Monitor(model, moments.moments)
    monitor.figures()
    set_up = time.perf_counter() - start
    spent = []
    for index in range(0, len(requests), 10):
        session.edit(requests[index : index + 10], batch_size=10)
        start = time.perf_counter()
        monitor.figures()
        spent.append(time.perf_counter() - start)
    edits, own = sum(clock.seconds[1:]), sum(spent[1:])
    rank = max(layer.rank("default") for _, layer in model.edited_layers())
    yield Row(
        "all figures of 5 layers after each batch of 10 edits",
        "the batch itself, MEMIT, verified",
        own / edits,
        0.05,
        True,
        in_seconds(own / len(spent[1:])),
        in_seconds(edits / len(spent[1:])),
        f"rank up to {rank}, edits tried twice; set-up {set_up:.1f} s, once",
    )
