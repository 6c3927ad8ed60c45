"""Seconds of what processes share out, in one process or in several: one JSON object, written by rank 0.

Of each part the seconds that pass, and the processor seconds of the process that computes the most, which other work on
the machine hardly changes.

    python benchmarks/processes.py
    torchrun --nproc-per-node 2 benchmarks/processes.py

The built-in model, with one thread in each process.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_prune import EditRequest, collect_second_moments, evaluate, get_editor
from peft_prune.builtin import builtin_model_path, edit_requests, plain_texts
from peft_prune.editors.contexts import generate_contexts
from peft_prune.editors.values import optimize_values


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    model = AutoModelForCausalLM.from_pretrained(builtin_model_path()).eval()
    tokenizer = AutoTokenizer.from_pretrained(builtin_model_path())
    requests = [EditRequest.from_record(record) for record in edit_requests(16)]
    texts = plain_texts(1000)
    editor = get_editor("memit", model=model)
    layer, modules = editor.layers(model)[-1], editor.modules(model)
    contexts = generate_contexts(model, tokenizer, editor.hyperparameters.context_lengths)
    settings = editor.hyperparameters.value_settings("block")
    work: dict[str, Callable[[], Any]] = {
        "second moments": lambda: collect_second_moments(model, tokenizer, texts, modules, progress=False),
        "values": lambda: optimize_values(model, tokenizer, requests, contexts, layer, settings),
        "evaluation": lambda: evaluate(model, tokenizer, requests, texts=texts[:300]),
    }
    found = {name: _seconds(state, call) for name, call in work.items()}
    if state.is_main_process:
        print(json.dumps(found))


def _seconds(state: PartialState, call: Callable[[], Any]) -> list[float]:
    state.wait_for_everyone()
    begin, computed = time.perf_counter(), time.process_time()
    call()
    spent = [time.perf_counter() - begin, time.process_time() - computed]
    every = gather_object([spent])
    return [max(one[place] for one in every) for place in range(2)]


if __name__ == "__main__":
    main()
