"""Greedy answers against a plain loop without batches, padding or cache."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from transformers import GenerationConfig, TopPLogitsWarper

from peft_prune import PruneEditConfig
from peft_prune.errors import InvalidRequestError
from peft_prune.models.generation import DRAWN_AMONG, Nucleus, greedy_answers
from peft_prune.models.tokenization import prompt_ids
from tests.talking import WORDS, dense_greedy, outspoken, sentences, spaced_tokenizer

PROMPTS = sentences(24)


def test_greedy_answers_equal_a_plain_loop_without_cache(pair) -> None:
    model, tokenizer = pair
    expected = [
        tokenizer.decode(dense_greedy(model, ids, 6), skip_special_tokens=True)
        for ids in prompt_ids(tokenizer, PROMPTS)
    ]
    assert greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=6) == expected
    assert len(set(expected)) > 5


@pytest.mark.parametrize("batch_size", [1, 3, 24])
def test_answers_do_not_depend_on_the_batch_size(pair, batch_size: int) -> None:
    model, tokenizer = pair
    reference = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=7)
    assert greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=batch_size) == reference


def test_each_prompt_may_have_its_own_limit(pair) -> None:
    model, tokenizer = pair
    limits = [1 + index % 4 for index in range(len(PROMPTS))]
    alone = [
        greedy_answers(model, tokenizer, [prompt], max_new_tokens=limit)[0]
        for prompt, limit in zip(PROMPTS, limits, strict=True)
    ]
    assert greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=limits) == alone


def test_a_long_prompt_beside_a_long_answer_stays_within_the_positions() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    prompts = [" ".join(WORDS[k % 20] for k in range(count)) for count in (9, 8, 3, 2)]
    lengths = [len(ids) for ids in prompt_ids(tokenizer, prompts)]
    limits = [model.config.n_positions - length for length in lengths]
    assert max(lengths) + max(limits) > model.config.n_positions
    alone = [
        greedy_answers(model, tokenizer, [prompt], max_new_tokens=limit)[0]
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    assert greedy_answers(model, tokenizer, prompts, max_new_tokens=limits) == alone


def test_an_answer_ends_before_the_end_token() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    prompt = prompt_ids(tokenizer, PROMPTS[:1])[0]
    free = dense_greedy(model, prompt, 6, end=-1)
    model.generation_config.eos_token_id = [0, free[2]]
    stop_at = free.index(free[2])
    assert greedy_answers(model, tokenizer, PROMPTS[:1], max_new_tokens=6)[0] == tokenizer.decode(free[:stop_at])


def test_an_answer_ends_before_the_stop_text(pair) -> None:
    model, tokenizer = pair
    free = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=8)
    stop = next(text[2] for text in free if len(text) > 4 and text[2].isalpha())
    stopped = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=8, stop=stop)
    assert stopped == [text.split(stop)[0] for text in free]
    assert stopped != free


def test_generation_stops_once_every_row_has_its_stop_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    (free,) = greedy_answers(model, tokenizer, PROMPTS[:1], max_new_tokens=8)
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    greedy_answers(model, tokenizer, PROMPTS[:1], max_new_tokens=8, stop=free[0])
    assert len(calls) == 1


def test_the_models_own_generation_settings_are_neither_used_nor_changed() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    reference = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=6)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.no_repeat_ngram_size = True, 9.0, 5.0, 1
    saved = copy.deepcopy(own)
    assert greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=6) == reference
    assert model.generation_config is own and own.to_dict() == saved.to_dict()


def test_settings_on_a_wrapper_are_neither_used_nor_changed() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    reference = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=6)
    wrapped = get_peft_model(model, PruneEditConfig(layers_to_transform=[1]))
    own = GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=5.0)
    wrapped.generation_config = own
    assert greedy_answers(wrapped, tokenizer, PROMPTS, max_new_tokens=6) == reference
    assert wrapped.generation_config is own and model.generation_config is not own


def test_a_tokenizer_without_a_pad_token_stays_without_one() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    side = tokenizer.padding_side
    greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=2)
    assert tokenizer.pad_token is None and tokenizer.padding_side == side


def test_mode_and_random_state_are_left_as_they_were() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    model.train()
    model.transformer.h[1].eval()
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=2)
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in model.modules()] == modes


def test_progress_counts_up_to_the_total(pair) -> None:
    model, tokenizer = pair
    seen = []
    greedy_answers(
        model, tokenizer, PROMPTS, max_new_tokens=1, batch_size=10, progress=lambda *counts: seen.append(counts)
    )
    assert [done for done, _ in seen] == [10, 20, 24] and {total for _, total in seen} == {24}


def test_a_prompt_that_does_not_fit_is_named(pair) -> None:
    model, tokenizer = pair
    with pytest.raises(InvalidRequestError, match=r"prompt 1: \d+ tokens do not fit the model's 32 positions"):
        greedy_answers(model, tokenizer, ["sea", "sea " * 40], max_new_tokens=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: 0"),
        ({"max_new_tokens": [1, 2]}, "max_new_tokens: 2 numbers for 1 prompts"),
        ({"max_new_tokens": 1, "stop": ""}, "stop: ''"),
        ({"max_new_tokens": 1, "batch_size": 0}, "batch_size: 0"),
    ],
)
def test_options_without_sense_are_named(pair, options: dict, message: str) -> None:
    model, tokenizer = pair
    with pytest.raises(ValueError, match=message):
        greedy_answers(model, tokenizer, ["sea"], **options)


@pytest.mark.parametrize(("mass", "temperature"), [(0.95, 1.0), (0.5, 0.9), (1e-6, 1.0)])
def test_what_is_drawn_among_is_what_sorting_the_whole_vocabulary_leaves(mass: float, temperature: float) -> None:
    scores = torch.randn(7, 1000, generator=torch.Generator().manual_seed(0)) * 4
    wanted = TopPLogitsWarper(mass)(None, scores / temperature)
    assert 1 <= int(torch.isfinite(wanted).sum(1).min()) and int(torch.isfinite(wanted).sum(1).max()) < DRAWN_AMONG
    assert torch.equal(Nucleus(mass, temperature)(None, scores), wanted)


def test_no_more_tokens_are_drawn_among_than_are_looked_at() -> None:
    found = Nucleus(0.99)(None, torch.zeros(2, 5000))
    assert torch.isfinite(found).sum(1).tolist() == [DRAWN_AMONG] * 2
