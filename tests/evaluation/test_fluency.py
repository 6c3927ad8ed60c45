"""How varied the words of free text are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from peft_prune.errors import InvalidRequestError
from peft_prune.evaluation import ngram_entropy, request_entropies
from tests.talking import dense_greedy, outspoken, spaced_tokenizer

from .test_editing import make_requests


def test_entropy_is_that_of_the_free_continuations(pair) -> None:
    model, tokenizer = pair
    first, second = make_requests(2)
    first = replace(first, generation_prompts=("east sea", "ten"))
    end = model.config.eos_token_id

    def dense(prompt: str) -> float:
        ids = tokenizer(prompt)["input_ids"]
        return ngram_entropy(tokenizer.decode(dense_greedy(model, ids, 9, end), skip_special_tokens=True))

    found = request_entropies(model, tokenizer, [first, second], max_new_tokens=9)
    assert found == pytest.approx([(dense("east sea") + dense("ten")) / 2, dense(second.text)])
    assert max(found) > 0


def test_a_prompt_that_leaves_no_room_is_named() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    long = replace(make_requests(1)[0], generation_prompts=(" ".join(["east"] * model.config.n_positions),))
    with pytest.raises(InvalidRequestError, match=r"prompt: 'east east .*' leaves no room for a token in the model's"):
        request_entropies(model, tokenizer, [long])
