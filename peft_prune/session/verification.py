"""Whether an edit took: what the model says when it is asked, and let free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..editors.asking import asks_in_chat, asks_plainly, chat_question, request_contexts, subject_prompts
from ..editors.target_likelihood import TargetBatch, target_log_probs
from ..editors.tokens import tokenize_prompts
from ..models.answers import answers_with, says
from ..models.generation import CHAT_TOKENS, SPELLING_TOKENS, greedy_answers
from ..models.inference import require_fit, undisturbed
from ..models.joining import asked
from ..models.serving import served_as
from ..models.tokenization import continuation_ids
from ..requests import EditRequest

BATCH = 64


ADAPTER_WEIGHTS = "prune_edit_"
"""In the names of an adapter's own weights, which are served in the dtype that they have."""


@dataclass(frozen=True)
class Said:
    """An answer in chat.

    Args:
        answer: The greedy answer to the question in the chat template, without a system prompt.
        holds: Whether it gives the target (:func:`~peft_prune.models.answers.says`).
    """

    answer: str
    holds: bool


@dataclass(frozen=True)
class Verification:
    """One edit as the model holds it now.

    Args:
        answer: Greedy answer to the bare prompt, some tokens longer than the target; of an edit that is asked in chat
            alone, the one to its question in the chat template.
        probability: Of the target there, the geometric mean over its tokens.
        holds: Whether the answer gives the target.
        chat: What is said in chat to an edit that is asked both ways; None for others.
    """

    answer: str
    probability: float
    holds: bool
    chat: Said | None = None


def verify(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    dtype: torch.dtype | None = None,
) -> list[Verification]:
    """Look at each request by free greedy generation, not by teacher forcing, and at its target's probability.

    Args:
        model: The model as it is now.
        tokenizer: Its tokenizer.
        requests: Each is asked as its ``ask`` says; plainly where it says nothing.
        dtype: Dtype in which the model will be served; None for the one that it has.
    """
    plain = [request for request in requests if asks_plainly(request)]
    chat = [request for request in requests if asks_in_chat(request)]
    with served_as(model, dtype, beside=ADAPTER_WEIGHTS):
        of_plain = iter(_verified_plainly(model, tokenizer, plain))
        of_chat = iter(said_in_chat(model, tokenizer, chat))
        alone = iter(_chat_probabilities(model, tokenizer, [one for one in chat if not asks_plainly(one)]))
        found = []
        for request in requests:
            said = next(of_chat) if asks_in_chat(request) else None
            if asks_plainly(request):
                found.append(replace(next(of_plain), chat=said))
            else:
                assert said is not None
                found.append(Verification(said.answer, next(alone), said.holds))
    return found


def said_in_chat(model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]) -> list[Said]:
    """The model's greedy answer to each request's question in the chat template, and whether it gives the target."""
    prompts = [chat_question(tokenizer, request) for request in requests]
    pairs = continuation_ids(
        tokenizer, [one.text for one in prompts], [r.target_new for r in requests], [one.separator for one in prompts]
    )
    texts = [asked(one.text, one.separator) for one in prompts]
    answers = (
        greedy_answers(model, tokenizer, texts, max_new_tokens=[len(pair.target) + CHAT_TOKENS for pair in pairs])
        if texts
        else []
    )
    return [Said(answer, gives(request, answer, chat=True)) for request, answer in zip(requests, answers, strict=True)]


def gives(request: EditRequest, answer: str, *, chat: bool) -> bool:
    """Whether an answer gives a request's target: it begins with it, or says it in chat."""
    if not chat:
        return answers_with(answer, request.target_new)
    return says(answer, request.target_new, instead_of=request.target_true, subject=request.subject)


def _chat_probabilities(model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]) -> list[float]:
    prompts = [chat_question(tokenizer, request) for request in requests]
    targets = [request.target_new for request in requests]
    texts, separators = [one.text for one in prompts], [one.separator for one in prompts]
    return target_probabilities(model, tokenizer, texts, targets, separators)


def _verified_plainly(
    model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]
) -> list[Verification]:
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
        InvalidRequestError: Its prompt or target gives no token, no token covers its subject, it is too long, or the
            chat template does not take its question.
    """
    (pair,) = continuation_ids(tokenizer, [request.text], [request.target_new], [request.separator])
    if request.subject is not None:
        tokenize_prompts(tokenizer, [request.prompt], request.subject)
    require_fit(model, [len(pair.prompt) + len(pair.target) + SPELLING_TOKENS])
    spoken = [one for one in request_contexts(tokenizer, request, [""]) if one.is_chat]
    if request.subject is not None:
        subject_prompts(tokenizer, spoken)
    for one in spoken:
        (pair,) = continuation_ids(tokenizer, [one.text], [request.target_new], [one.separator])
        require_fit(model, [len(pair.prompt) + len(pair.target) + CHAT_TOKENS])
