"""On the real model itself: it loads, knows the facts, is edited, and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_prune import (
    EditSession,
    PruneEditConfig,
    collect_second_moments,
    get_editor,
    load_real_model,
    load_requests,
    load_texts,
)
from peft_prune.cli import main
from peft_prune.cli.models import load_model
from peft_prune.cli.places import in_gguf
from peft_prune.models.answers import answers_with
from peft_prune.models.fingerprint import base_fingerprint, same_base
from peft_prune.models.generation import greedy_answers
from peft_prune.real import is_installed, real_model, real_model_path

from .test_facts import FACTS

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return load_real_model("smollm2")


def test_the_checkpoint_is_a_plain_one_in_bfloat16_with_its_chat_template(model) -> None:
    found, tokenizer = model
    stored = json.loads((real_model_path("smollm2") / "config.json").read_text())
    assert stored["dtype"] == "bfloat16" and "quantization_config" not in stored
    assert (found.config.num_hidden_layers, found.config.hidden_size) == (30, 576)
    assert found.dtype == torch.float32 and found.name_or_path.endswith("smollm2")
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    (answer,) = greedy_answers(found, tokenizer, [asked], max_new_tokens=8)
    assert "Paris" in answer


def test_the_model_knows_every_fact_and_most_of_what_stands_beside_it(model) -> None:
    found, tokenizer = load_real_model("smollm2", torch.bfloat16)
    facts = load_requests(FACTS)
    kinds = {
        "prompt": [(fact.text, fact.target_true) for fact in facts],
        "paraphrase": [(prompt, fact.target_true) for fact in facts for prompt in fact.paraphrase_prompts],
        "neighbor": [(prompt, fact.target_true) for fact in facts for prompt in fact.neighborhood_prompts],
    }
    known = {}
    for kind, asked in kinds.items():
        answers = greedy_answers(found, tokenizer, [prompt for prompt, _ in asked], max_new_tokens=9)
        known[kind] = [answers_with(answer, true) for answer, (_, true) in zip(answers, asked, strict=True)]
    lacking = [text for (text, _), knows in zip(kinds["prompt"], known["prompt"], strict=True) if not knows]
    assert not lacking
    assert sum(known["neighbor"]) >= 0.95 * len(known["neighbor"])
    assert sum(known["paraphrase"]) >= 0.8 * len(known["paraphrase"])


def test_three_edits_take_and_come_back_from_a_folder(model, tmp_path: Path) -> None:
    base, tokenizer = load_real_model("smollm2")
    requests = load_requests(FACTS)[:3]
    editor = get_editor("memit", model=base)
    texts = load_texts(FACTS.with_name("plain_english.json"))
    moments = collect_second_moments(base, tokenizer, texts, editor.modules(base), progress=False)
    # over so few texts an update is large, and a restraint would act on three edits already
    layers = list(editor.layers(base))
    config = PruneEditConfig(layers_to_transform=layers, restraint="none", task_type="CAUSAL_LM")
    edited = get_peft_model(base, config).eval()
    with EditSession(edited, tokenizer, editor, statistics=moments, monitor=False) as session:
        results = session.edit(requests, batch_size=3)
        session.save(tmp_path / "adapter")
    assert all(result.took for result in results)
    again = PeftModel.from_pretrained(load_real_model("smollm2")[0], str(tmp_path / "adapter"), strict_base=True).eval()
    prompts = [request.text for request in requests]
    answers = greedy_answers(again, tokenizer, prompts, max_new_tokens=9)
    assert all(answers_with(answer, one.target_new) for answer, one in zip(answers, requests, strict=True))
    with again.disable_adapter():
        answers = greedy_answers(again, tokenizer, prompts, max_new_tokens=9)
    assert all(answers_with(answer, one.target_true) for answer, one in zip(answers, requests, strict=True))
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "smollm2"


def test_its_gguf_file_is_the_same_base(model) -> None:
    (file,) = real_model("smollm2").parts()
    found = load_model(in_gguf(str(file.parent), file.name))
    assert same_base(base_fingerprint(found), base_fingerprint(model[0]))


def test_commands_know_it_by_its_name(capsys, tmp_path: Path) -> None:
    out = tmp_path / "audit.html"
    assert main(["audit", "--base", "smollm2", "--edited", "smollm2", "--only", "layers.0", "--out", str(out)]) == 0
    assert load_model("smollm2", "bfloat16").name_or_path == "smollm2"


@pytest.mark.skipif(not is_installed("gemma3"), reason="its packages are not installed")
def test_gemma_answers() -> None:
    found, tokenizer = load_real_model("gemma3", torch.bfloat16)
    (answer,) = greedy_answers(found, tokenizer, ["The capital of France is"], max_new_tokens=3)
    assert answers_with(answer, "Paris")
