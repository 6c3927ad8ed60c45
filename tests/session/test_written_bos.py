"""A prompt that writes its BOS, as a chat template does, is everywhere the prompt without it; so is a separator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_prune import EditRequest
from peft_prune.editors import collect_second_moments, get_editor
from peft_prune.editors.keys import compute_keys
from peft_prune.evaluation import perplexity, request_answers, score_requests
from peft_prune.session.verification import verify
from tests.talking import bos_tokenizer, chat_tokenizer, outspoken
from tests.tiny import tiny_llama

MODULE = "model.layers.1.mlp.down_proj"
EDITORS = (("ft", {"num_steps": 2}), ("rome", {"v_num_grad_steps": 3, "context_lengths": ((3, 1),)}))


def bare() -> list[EditRequest]:
    return [
        EditRequest("note {} sea", subject, target, "net", (f"tan {subject} eat",), ("stone eat",))
        for subject, target in (("tone seat", "ten"), ("oats", "tea son"))
    ]


def written(requests: list[EditRequest], bos: str) -> list[EditRequest]:
    return [
        replace(
            one,
            prompt=bos + one.prompt,
            paraphrase_prompts=tuple(bos + prompt for prompt in one.paraphrase_prompts),
            neighborhood_prompts=tuple(bos + prompt for prompt in one.neighborhood_prompts),
        )
        for one in requests
    ]


@pytest.fixture(scope="module", params=["<s>", "<gmask><sop>"])
def scene(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str]:
    model = outspoken("llama")
    model.resize_token_embeddings(300, mean_resizing=False)
    return model, chat_tokenizer(request.param), request.param


def test_it_is_asked_verified_and_scored_alike(scene) -> None:
    model, tokenizer, bos = scene
    plain, chat = bare(), written(bare(), bos)
    assert verify(model, tokenizer, chat) == verify(model, tokenizer, plain)
    answers = [request_answers(model, tokenizer, requests) for requests in (plain, chat)]
    assert replace(answers[0], asked=()) == replace(answers[1], asked=())
    scores = [
        score_requests(model, tokenizer, one, base_answers=own) for one, own in zip((plain, chat), answers, strict=True)
    ]
    assert scores[0] == scores[1]


def test_its_keys_and_its_edit_are_the_same(scene) -> None:
    model, tokenizer, bos = scene
    chat = written(bare(), bos)
    contexts = ["", "The tea.", "I note."]
    for one, other in zip(
        compute_keys(model, tokenizer, bare(), contexts, 1),
        compute_keys(model, tokenizer, chat, contexts, 1),
        strict=True,
    ):
        assert torch.equal(one.mean, other.mean) and torch.equal(one.bare, other.bare)
    moments = collect_second_moments(model, tokenizer, ["sea stone tea"] * 9, [MODULE], progress=False)
    for name, settings in EDITORS:
        editor = get_editor(name, layers=(1,), **settings)
        prepared = editor.prepare(model, tokenizer, moments)
        own = [editor.compute(model, tokenizer, one[:1], prepared).updates[MODULE] for one in (bare(), chat)]
        assert torch.equal(own[0].B, own[1].B) and torch.equal(own[0].A, own[1].A)


def test_statistics_and_perplexity_count_it_once(scene) -> None:
    model, tokenizer, bos = scene
    texts = ["sea stone tea", "note ten sea"]
    moments = [
        collect_second_moments(model, tokenizer, own, [MODULE], progress=False)
        for own in (texts, [bos + text for text in texts])
    ]
    assert moments[0].tokens == moments[1].tokens
    assert torch.equal(moments[0].moments[MODULE], moments[1].moments[MODULE])
    assert perplexity(model, tokenizer, texts) == perplexity(model, tokenizer, [bos + text for text in texts])


def test_a_separator_is_used_where_a_request_is_verified_scored_and_edited() -> None:
    model, tokenizer = tiny_llama(), bos_tokenizer()
    told = [replace(one, separator=" tea ") for one in bare()]
    spelt = [
        replace(
            one,
            prompt=f"{one.prompt} tea",
            paraphrase_prompts=tuple(f"{prompt} tea" for prompt in one.paraphrase_prompts),
            neighborhood_prompts=tuple(f"{prompt} tea" for prompt in one.neighborhood_prompts),
        )
        for one in bare()
    ]
    assert verify(model, tokenizer, told) == verify(model, tokenizer, spelt) != verify(model, tokenizer, bare())
    scores = [score_requests(model, tokenizer, requests, base_answers=None) for requests in (told, spelt)]
    assert scores[0] == scores[1]
    moments = collect_second_moments(model, tokenizer, ["sea stone tea"] * 9, [MODULE], progress=False)
    for name, settings in EDITORS:
        editor = get_editor(name, layers=(1,), **settings)
        prepared = editor.prepare(model, tokenizer, moments)
        updates = [editor.compute(model, tokenizer, own[:1], prepared).updates[MODULE] for own in (told, spelt)]
        assert torch.allclose(updates[0].B, updates[1].B) and torch.allclose(updates[0].A, updates[1].A)
