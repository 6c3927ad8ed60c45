"""How varied the words of free text are."""

from __future__ import annotations

import math
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


def test_entropies_of_bigrams_and_trigrams_weigh_a_third_and_two_thirds() -> None:
    """Counted by hand: "a b a b a c" has bigrams ab ×2, ba ×2, ac and trigrams aba ×2, bab, bac.

    kmeng01/rome@0874014c experiments/py/eval_utils_counterfact.py takes the mean of 2/3 and 4/3 of the entropies.
    """
    bigrams = -(2 * 2 / 5 * math.log2(2 / 5) + 1 / 5 * math.log2(1 / 5))
    trigrams = -(1 / 2 * math.log2(1 / 2) + 2 * 1 / 4 * math.log2(1 / 4))
    assert ngram_entropy("a b a b a c") == pytest.approx(bigrams / 3 + 2 * trigrams / 3, rel=1e-12)
    assert ngram_entropy("a b a b a c", [(2, 1.0)]) == pytest.approx(bigrams, rel=1e-12)
    assert ngram_entropy("a b a b a c", [(3, 5.0)]) == pytest.approx(5 * trigrams, rel=1e-12)
    assert ngram_entropy("a b") == 0.0 and ngram_entropy("a a a a a") == 0.0
