"""The small real model on real CounterFact records; skipped where the shared data is not at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_prune.evaluation import evaluate, load_facts, load_texts
from peft_prune.requests import load_requests


def test_the_base_knows_its_facts_and_none_of_the_edits(shared: Path) -> None:
    folder = shared / "models" / "counterfact-gpt2-5m"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = evaluate(
        model,
        tokenizer,
        load_requests(shared / "data" / "counterfact-dev-250.json", limit=20),
        facts=load_facts(shared / "data" / "known-facts-dev.json")[:500],
        texts=load_texts(shared / "data" / "text-dev.json")[:40],
    )["before"]
    assert before["efficacy"]["value"] <= 0.1 and before["efficacy_greedy"]["value"] <= 0.1
    assert before["locality"]["value"] >= 0.95 and before["locality"]["n"] == 200
    assert before["recall"]["value"] == pytest.approx(0.98, abs=0.015)
    assert 60 < before["perplexity"] < 140
