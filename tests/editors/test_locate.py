"""Causal tracing: exact where the answer is known, a noised pass made by hand, and no trace left in the model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from peft_prune import EditRequest
from peft_prune.editors.locate import NOISE, locate
from peft_prune.errors import InvalidRequestError
from peft_prune.models.generation import greedy_answers
from tests.talking import spaced_tokenizer
from tests.tiny import willing


def known_facts(model, tokenizer) -> list[EditRequest]:
    """Facts whose object is whatever the model says."""
    prompts = [("note sea {}", "sane ant"), ("tan {}", "tone seat"), ("{} eat", "oats tea")]
    texts = [prompt.replace("{}", subject) for prompt, subject in prompts]
    answers = greedy_answers(model, tokenizer, texts, max_new_tokens=1)
    return [
        EditRequest(prompt, subject, "ten", target_true=answer.strip())
        for (prompt, subject), answer in zip(prompts, answers, strict=True)
        if answer.strip()
    ]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_restoring_the_last_block_where_the_subject_ends_the_prompt_restores_everything(kind: str) -> None:
    model, tokenizer = willing(kind), spaced_tokenizer()
    facts = [fact for fact in known_facts(model, tokenizer) if fact.prompt.endswith("{}")]
    found = locate(model, tokenizer, facts, samples=4, progress=False)
    assert found.facts == len(facts) >= 1
    assert found.block[-1] == pytest.approx(found.clean - found.corrupted, abs=1e-6)
    assert 0 <= found.corrupted and found.clean <= 1


def test_the_noised_pass_is_the_one_made_by_hand() -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    (fact, *_) = known_facts(model, tokenizer)
    found = locate(model, tokenizer, [fact], samples=3, seed=5, progress=False)
    ids = tokenizer(fact.text)["input_ids"]
    span = slice(len(ids) - len(tokenizer(" " + fact.subject)["input_ids"]), len(ids))
    embeddings = model.get_input_embeddings().weight.detach()
    noise = torch.randn(3, span.stop - span.start, 16, generator=torch.Generator().manual_seed(5))
    inputs = embeddings[torch.tensor(ids)].repeat(3, 1, 1)
    inputs[:, span] += NOISE * embeddings.std() * noise
    target = tokenizer(f"{fact.text} {fact.target_true}")["input_ids"][len(ids)]
    with torch.no_grad():
        expected = model(inputs_embeds=inputs).logits[:, -1].softmax(-1)[:, target].mean()
    assert found.corrupted == pytest.approx(float(expected), abs=1e-6)


def test_the_suggestion_is_a_window_that_ends_at_the_largest_effect_of_the_mlps() -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    found = locate(model, tokenizer, known_facts(model, tokenizer), samples=2, progress=False)
    assert found.mlp[found.layer] == max(found.mlp) and found.layers == (found.layer,)
    deep = dataclasses.replace(found, mlp=tuple(0.1 * (layer == 17) for layer in range(48)), editable=None)
    assert deep.layer == 17 and deep.layers == (13, 14, 15, 16, 17)
    even = tuple(range(0, 48, 2))
    some = dataclasses.replace(deep, editable=even, mlp=(*deep.mlp[:16], 0.05, *deep.mlp[17:]))
    assert some.layer == 16 and some.layers == (8, 10, 12, 14, 16)


def test_it_is_deterministic_and_leaves_the_model_alone() -> None:
    model, tokenizer = willing("llama"), spaced_tokenizer()
    facts = known_facts(model, tokenizer)
    first = locate(model, tokenizer, facts, samples=2, progress=False)
    assert locate(model, tokenizer, facts, samples=2, progress=False) == first
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_facts_that_the_model_does_not_know_are_an_error() -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    unknown = [dataclasses.replace(fact, target_true="net son") for fact in known_facts(model, tokenizer)]
    with pytest.raises(InvalidRequestError, match="knows none"):
        locate(model, tokenizer, unknown, progress=False)
    with pytest.raises(InvalidRequestError, match="0 that have a target_true"):
        locate(model, tokenizer, [EditRequest("{} eat", "oats", "ten")], progress=False)
