"""Log-probabilities of known tokens against one unpadded float64 pass for each sequence."""

from __future__ import annotations

import pytest
import torch

from peft_prune.errors import InvalidRequestError
from peft_prune.evaluation import next_tokens, token_log_probabilities
from peft_prune.models.tokenization import Continuation, continuation_ids, prompt_ids
from tests.talking import dense_log_probabilities, dense_target_score, outspoken, sentences, spaced_tokenizer

PROMPTS, TARGETS = sentences(30, seed=1), sentences(30, seed=2, longest=2)


def test_log_probabilities_equal_a_dense_computation(pair) -> None:
    model, tokenizer = pair
    continuations = continuation_ids(tokenizer, PROMPTS, TARGETS)
    measured = [score.double().mean().item() for score in token_log_probabilities(model, continuations)]
    expected = [dense_target_score(model, item.prompt, item.target) for item in continuations]
    assert measured == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_log_probabilities_do_not_depend_on_the_batch_size(pair, batch_size: int) -> None:
    model, tokenizer = pair
    continuations = continuation_ids(tokenizer, PROMPTS, TARGETS)
    reference = token_log_probabilities(model, continuations, batch_size=9)
    measured = token_log_probabilities(model, continuations, batch_size=batch_size)
    torch.testing.assert_close(torch.cat(measured), torch.cat(reference), rtol=1e-4, atol=1e-5)


def test_a_sequence_that_begins_another_is_read_off_it() -> None:
    model = outspoken("gpt2")
    continuations = [
        Continuation((5, 6), (7,)),
        Continuation((5, 6), (8,)),
        Continuation((5, 6), (9, 10)),
        Continuation((5,), (6, 9, 3)),
        Continuation((4,), (6,)),
    ]
    total = []
    measured = token_log_probabilities(model, continuations, progress=lambda _, count: total.append(count))
    assert total[-1] == 2
    expected = [dense_target_score(model, item.prompt, item.target) for item in continuations]
    assert [score.double().mean().item() for score in measured] == pytest.approx(expected, rel=1e-4)


def test_the_softmax_of_a_half_precision_model_is_in_float32() -> None:
    model, tokenizer = outspoken("gpt2").bfloat16(), spaced_tokenizer()
    (item,) = continuation_ids(tokenizer, ["sea stone"], ["east"])
    (score,) = token_log_probabilities(model, [item])
    with torch.no_grad():
        logits = model(torch.tensor([[*item.prompt, *item.target[:-1]]])).logits[0, len(item.prompt) - 1 :]
    assert score.dtype == torch.float32
    expected = logits.double().log_softmax(-1).gather(1, torch.tensor(item.target)[:, None]).squeeze(1)
    torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_model_that_gives_all_logits_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    continuations = continuation_ids(tokenizer, PROMPTS, TARGETS)
    reference = token_log_probabilities(model, continuations)
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda input_ids, attention_mask: forward(input_ids, attention_mask=attention_mask)
    )
    torch.testing.assert_close(token_log_probabilities(model, continuations), reference, rtol=1e-5, atol=1e-5)


def test_next_tokens_are_the_dense_maxima(pair) -> None:
    model, tokenizer = pair
    sequences = prompt_ids(tokenizer, PROMPTS)
    expected = [int(dense_log_probabilities(model, ids)[-1].argmax()) for ids in sequences]
    for batch_size in (1, 7, 64):
        assert next_tokens(model, sequences, batch_size=batch_size) == expected


def test_a_sequence_that_does_not_fit_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="prompt 1: 33 tokens"):
        token_log_probabilities(outspoken("gpt2"), [Continuation((1,), (2,)), Continuation((1,) * 33, (2,))])
