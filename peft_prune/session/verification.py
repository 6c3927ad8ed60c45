"""Whether an edit took: what the model says to the bare prompt when it is let free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..editors.target_likelihood import TargetBatch, target_log_probs
from ..editors.tokens import tokenize_prompts
from ..models.answers import answers_with
from ..models.generation import SPELLING_TOKENS, greedy_answers
from ..models.inference import require_fit, undisturbed
from ..models.joining import asked
from ..models.tokenization import continuation_ids
from ..requests import EditRequest

BATCH = 64


@dataclass(frozen=True)
class Verification:
    """One edit as the model holds it now.

    Args:
        answer: Greedy answer to the bare prompt, some tokens longer than the target.
        probability: Of the target there, the geometric mean over its tokens.
        holds: Whether the answer gives the target.
    """

    answer: str
    probability: float
    holds: bool


def verify(model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]) -> list[Verification]:
    """Look at each request by free greedy generation, not by teacher forcing, and at its target's probability."""
    if not requests:
        return []
    texts, targets = [request.text for request in requests], [request.target_new for request in requests]
    separators = [request.separator for request in requests]
    pairs = continuation_ids(tokenizer, texts, targets, separators)
    limits = [len(pair.target) + SPELLING_TOKENS for pair in pairs]
    prompts = [asked(text, separator) for text, separator in zip(texts, separators, strict=True)]
    answers = greedy_answers(model, tokenizer, prompts, max_new_tokens=limits)
    probabilities = target_probabilities(model, tokenizer, texts, targets, separators)
    return [
        Verification(answer, probability, answers_with(answer, target))
        for answer, probability, target in zip(answers, probabilities, targets, strict=True)
    ]


def target_probabilities(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    targets: Sequence[str],
    separators: Sequence[str | None],
) -> list[float]:
    """The geometric mean of each target's token probabilities behind its text."""
    found: list[float] = []
    with undisturbed(model):
        for start in range(0, len(texts), BATCH):
            part = slice(start, start + BATCH)
            batch = TargetBatch.build(model, tokenizer, texts[part], targets[part], separators[part])
            found += target_log_probs(model, batch).exp().tolist()
    return found


def require_editable(model: Any, tokenizer: PreTrainedTokenizerBase, request: EditRequest) -> None:
    """Find out before a batch is computed whether a request can be part of it.

    Raises:
        InvalidRequestError: Its prompt or target gives no token, no token covers its subject, or it is too long.
    """
    (pair,) = continuation_ids(tokenizer, [request.text], [request.target_new], [request.separator])
    tokenize_prompts(tokenizer, [request.prompt], request.subject)
    require_fit(model, [len(pair.prompt) + len(pair.target) + SPELLING_TOKENS])
