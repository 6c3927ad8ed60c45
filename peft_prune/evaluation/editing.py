"""Efficacy, generalization and locality: by probability, and by what the model says when it is let free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..editors.asking import asks_in_chat, chat_question
from ..models.answers import answers_with, normalized, same_in_chat
from ..models.chat import chat_prompt
from ..models.generation import CHAT_TOKENS, SPELLING_TOKENS, greedy_answers
from ..models.inference import Progress, require_fit
from ..models.joining import asked
from ..models.tokenization import continuation_ids, prompt_ids
from ..requests import EditRequest, Question
from ..requests.asking import question_form
from ..session.verification import gives
from .estimates import Proportion
from .token_probabilities import token_log_probabilities


@dataclass(frozen=True)
class ChatAnswers:
    """One model's greedy answers in chat to the prompts of one request, each some tokens longer than its target.

    Args:
        prompt: The answer to its question.
        paraphrases: The answers to its paraphrase prompts, as questions.
        others: The answers to its neighborhood prompts and unrelated questions, as questions.
    """

    prompt: str
    paraphrases: tuple[str, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class RequestAnswers:
    """One model's greedy answers to the prompts of some requests, each a tuple with one entry for each request.

    Args:
        prompts: The answer to the bare prompt.
        paraphrases: The answers to the paraphrase prompts.
        neighborhood: The answers to the neighborhood prompts, each as many tokens long as the request's longer target.
        portability: The answers to the portability questions.
        unrelated: The answers to the unrelated questions, each as many tokens long as its longest right answer.
        asked: The bare prompts that were asked, by which answers to other requests are noticed.
        chat: The answers in chat; None for a request that is not asked so.
    """

    prompts: tuple[str, ...]
    paraphrases: tuple[tuple[str, ...], ...]
    neighborhood: tuple[tuple[str, ...], ...]
    portability: tuple[tuple[str, ...], ...]
    unrelated: tuple[tuple[str, ...], ...]
    asked: tuple[str, ...] = ()
    chat: tuple[ChatAnswers | None, ...] = ()


def request_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> RequestAnswers:
    """Let ``model`` answer every prompt of ``requests`` by free greedy generation, without teacher forcing.

    Raises:
        InvalidRequestError: A prompt or a target gives no token, or does not fit the model.
    """
    prompts, limits = _asked(tokenizer, requests)
    answers = iter(
        greedy_answers(model, tokenizer, prompts, max_new_tokens=limits, batch_size=batch_size, progress=progress)
    )
    bare, paraphrases, neighborhood, portability, unrelated = [], [], [], [], []
    for request in requests:
        bare.append(next(answers))
        paraphrases.append(tuple(next(answers) for _ in request.paraphrase_prompts))
        neighborhood.append(tuple(next(answers) for _ in request.neighborhood_prompts))
        portability.append(tuple(next(answers) for _ in request.portability))
        unrelated.append(tuple(next(answers) for _ in request.unrelated))
    return RequestAnswers(
        prompts=tuple(bare),
        paraphrases=tuple(paraphrases),
        neighborhood=tuple(neighborhood),
        portability=tuple(portability),
        unrelated=tuple(unrelated),
        asked=tuple(request.text for request in requests),
        chat=chat_answers(model, tokenizer, requests, batch_size=batch_size, progress=progress),
    )


def chat_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> tuple[ChatAnswers | None, ...]:
    """Let ``model`` answer in chat the prompts of those requests that are asked so; None for the others.

    Raises:
        InvalidRequestError: The chat template fails on a prompt, or a prompt does not fit the model.
    """
    asked_so = [request for request in requests if asks_in_chat(request)]
    if not asked_so:
        return (None,) * len(requests)
    prompts, limits = _asked_in_chat(tokenizer, asked_so)
    found = iter(
        greedy_answers(model, tokenizer, prompts, max_new_tokens=limits, batch_size=batch_size, progress=progress)
    )
    return tuple(
        ChatAnswers(
            next(found),
            tuple(next(found) for _ in request.paraphrase_prompts),
            tuple(next(found) for _ in (*request.neighborhood_prompts, *request.unrelated)),
        )
        if asks_in_chat(request)
        else None
        for request in requests
    )


def require_answerable(model: Any, tokenizer: PreTrainedTokenizerBase, request: EditRequest) -> None:
    """Find out before anything is measured whether every prompt of a request can be asked.

    Raises:
        InvalidRequestError: A prompt or a target gives no token, or does not fit the model.
    """
    prompts, limits = _asked(tokenizer, [request])
    if asks_in_chat(request):
        spoken, longer = _asked_in_chat(tokenizer, [request])
        prompts, limits = prompts + spoken, limits + longer
    require_fit(model, [len(ids) + limit for ids, limit in zip(prompt_ids(tokenizer, prompts), limits, strict=True)])


def _asked_in_chat(tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]) -> tuple[list[str], list[int]]:
    """Every prompt of the requests as a question in the chat template, and for each the most tokens of its answer."""
    prompts, limits = [], []
    for request, (_, longest) in zip(requests, _target_lengths(tokenizer, requests), strict=True):
        own = chat_question(tokenizer, request)
        others = [*request.paraphrase_prompts, *request.neighborhood_prompts]
        others += [one.prompt for one in request.unrelated]
        spoken = [chat_prompt(tokenizer, question_form(prompt)) for prompt in others]
        prompts += [asked(own.text, own.separator), *(asked(one.before, one.separator) for one in spoken)]
        limits += [longest + CHAT_TOKENS] * (1 + len(spoken))
    return prompts, limits


def _asked(tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]) -> tuple[list[str], list[int]]:
    """Every prompt of the requests, and for each the most tokens that are generated."""
    prompts, limits = [], []
    lengths = _answer_lengths(tokenizer, [one for request in requests for one in _questions(request)])
    for request, (new, longest) in zip(requests, _target_lengths(tokenizer, requests), strict=True):
        rewritten = [request.text, *request.paraphrase_prompts]
        prompts += [asked(prompt, request.separator) for prompt in (*rewritten, *request.neighborhood_prompts)]
        prompts += [one.prompt for one in _questions(request)]
        limits += [new + SPELLING_TOKENS] * len(rewritten) + [longest] * len(request.neighborhood_prompts)
        limits += [next(lengths) + SPELLING_TOKENS for _ in request.portability]
        limits += [next(lengths) for _ in request.unrelated]
    return prompts, limits


def score_requests(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    base_answers: RequestAnswers | None,
    answers: RequestAnswers | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> dict[str, Proportion]:
    """Score ``model`` on ``requests``, once over all prompts of a kind.

    By probability (Meng et al. 2022, section 3.4). The published code compares the mean negative log-likelihood of a
    target's tokens, not the sum (``test_batch_prediction`` in ``eval_utils_counterfact.py`` of kmeng01/rome), and so
    do we:

    * ``efficacy``: share of bare prompts after which ``target_new`` is more probable than ``target_true``;
    * ``generalization``: the same over all paraphrase prompts;
    * ``locality``: share of neighborhood prompts after which ``target_true`` is more probable than ``target_new``.

    A request without ``target_true`` is left out of these three, and n says so. By free greedy generation:

    * ``efficacy_greedy``, ``generalization_greedy``: share of answers that begin with ``target_new``
      (:func:`~peft_prune.models.answers.answers_with`);
    * ``portability_greedy``: share of portability questions whose answer begins with one of those that count as right;
    * ``locality_greedy``: share of neighborhood prompts and unrelated questions whose answer is the *base model's own*
      answer, over as many tokens as the longer of the request's targets (or the question's longest answer) has. For the
      base itself it is 1 by definition.

    In chat, of the requests that are asked so, each prompt as a question in the chat template:

    * ``efficacy_chat``, ``generalization_chat``: share of answers that say ``target_new``
      (:func:`~peft_prune.models.answers.says`);
    * ``locality_chat``: share of neighborhood prompts and unrelated questions whose first sentence is the base's own.

    Args:
        model: The model to score.
        tokenizer: Its tokenizer.
        requests: What was, or is to be, edited.
        base_answers: The unedited model's answers to these requests; None leaves ``locality_greedy`` without a value,
            because an edited model cannot tell it.
        answers: ``model``'s own answers, where they are at hand already.
        batch_size: Most prompts in one batch.
        progress: Called with the number of prompts done and their total, for the probabilities and again for the
            answers.

    Raises:
        InvalidRequestError: A prompt or a target gives no token, or does not fit the model.
        ValueError: ``base_answers`` or ``answers`` belong to other requests.
    """
    outcomes = request_outcomes(
        model,
        tokenizer,
        requests,
        base_answers=base_answers,
        answers=answers,
        batch_size=batch_size,
        progress=progress,
    )
    return {kind: Proportion.of_clusters(own) for kind, own in outcomes.items()}


Outcomes = Mapping[str, Sequence[tuple[bool, ...]]]
"""By the figure's name, the outcomes of every request, one for each of its prompts."""


def request_outcomes(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    base_answers: RequestAnswers | None,
    answers: RequestAnswers | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> dict[str, list[tuple[bool, ...]]]:
    """What :func:`score_requests` counts, by the figure's name and then for each request.

    A request that a figure cannot be asked of has no outcome there: ``()``. The prompts of one request hang together,
    so an interval over requests takes each request as one unit; see :mod:`peft_prune.evaluation.scores`.

    The arguments and errors are those of :func:`score_requests`.
    """
    if answers is None:
        answers = request_answers(model, tokenizer, requests, batch_size=batch_size, progress=progress)
    for name, given in (("answers", answers), ("base_answers", base_answers)):
        if given is not None:
            _require_match(name, given, requests)
    prefers_new = partial(_preferences, model, tokenizer, batch_size=batch_size, progress=progress)
    return _by_probability(requests, prefers_new) | {
        **_by_answer(requests, answers, base_answers),
        **_in_chat(requests, answers, base_answers),
    }


def _by_probability(requests: Sequence[EditRequest], prefers_new: Any) -> dict[str, list[tuple[bool, ...]]]:
    prompts: dict[str, list[tuple[str, ...]]] = {
        "efficacy": [(request.text,) for request in requests],
        "generalization": [request.paraphrase_prompts for request in requests],
        "locality": [request.neighborhood_prompts for request in requests],
    }
    known = [request.target_true is not None for request in requests]
    questions = [
        (request, prompt)
        for kind in prompts.values()
        for request, own, told in zip(requests, kind, known, strict=True)
        for prompt in own
        if told
    ]
    margins = iter(prefers_new(questions))
    wanted = {"efficacy": 1, "generalization": 1, "locality": -1}
    return {
        kind: [
            tuple(wanted[kind] * next(margins) > 0 for _ in own) if told else ()
            for own, told in zip(prompts[kind], known, strict=True)
        ]
        for kind in prompts
    }


def _preferences(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[tuple[EditRequest, str]],
    *,
    batch_size: int,
    progress: Progress | None,
) -> list[float]:
    """Mean log-probability of ``target_new`` minus that of ``target_true``, for each prompt."""
    prompts, separators = [prompt for _, prompt in questions], [request.separator for request, _ in questions]
    new = continuation_ids(tokenizer, prompts, [request.target_new for request, _ in questions], separators)
    true = continuation_ids(tokenizer, prompts, [str(request.target_true) for request, _ in questions], separators)
    scores = token_log_probabilities(model, [*new, *true], batch_size=batch_size, progress=progress)
    means = [score.double().mean().item() for score in scores]
    return [of_new - of_true for of_new, of_true in zip(means[: len(new)], means[len(new) :], strict=True)]


def _by_answer(
    requests: Sequence[EditRequest], answers: RequestAnswers, base_answers: RequestAnswers | None
) -> dict[str, list[tuple[bool, ...]]]:
    paraphrases = zip(requests, answers.paraphrases, strict=True)
    questions = zip(requests, answers.portability, strict=True)
    return {
        "efficacy_greedy": [
            (answers_with(answer, request.target_new),)
            for request, answer in zip(requests, answers.prompts, strict=True)
        ],
        "generalization_greedy": [
            tuple(answers_with(answer, request.target_new) for answer in given) for request, given in paraphrases
        ],
        "portability_greedy": [
            tuple(
                any(answers_with(answer, right) for right in question.answers)
                for question, answer in zip(request.portability, given, strict=True)
            )
            for request, given in questions
        ],
        "locality_greedy": [()] * len(requests) if base_answers is None else _unchanged(answers, base_answers),
    }


def _in_chat(
    requests: Sequence[EditRequest], answers: RequestAnswers, base_answers: RequestAnswers | None
) -> dict[str, list[tuple[bool, ...]]]:
    """The figures in chat; none where no request is asked so."""
    chat = answers.chat or (None,) * len(requests)
    if not any(chat):
        return {}
    base = (None,) * len(requests) if base_answers is None else base_answers.chat or (None,) * len(requests)
    pairs = list(zip(requests, chat, strict=True))
    return {
        "efficacy_chat": [() if own is None else (gives(one, own.prompt, chat=True),) for one, own in pairs],
        "generalization_chat": [
            () if own is None else tuple(gives(one, answer, chat=True) for answer in own.paraphrases)
            for one, own in pairs
        ],
        "locality_chat": [
            ()
            if own is None or other is None
            else tuple(same_in_chat(a, b) for a, b in zip(own.others, other.others, strict=True))
            for own, other in zip(chat, base, strict=True)
        ],
    }


def _unchanged(answers: RequestAnswers, base_answers: RequestAnswers) -> list[tuple[bool, ...]]:
    both = [
        [(*near, *far) for near, far in zip(given.neighborhood, given.unrelated, strict=True)]
        for given in (answers, base_answers)
    ]
    return [
        tuple(normalized(a) == normalized(b) for a, b in zip(own, base, strict=True))
        for own, base in zip(*both, strict=True)
    ]


def _target_lengths(tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]) -> list[tuple[int, int]]:
    """Tokens of ``target_new``, and of the longer of both targets, after each request's bare prompt."""
    prompts, separators = [request.text for request in requests], [request.separator for request in requests]
    longer = [request.target_true or request.target_new for request in requests]
    new = continuation_ids(tokenizer, prompts, [request.target_new for request in requests], separators)
    true = continuation_ids(tokenizer, prompts, longer, separators)
    return [(len(a.target), max(len(a.target), len(b.target))) for a, b in zip(new, true, strict=True)]


def _questions(request: EditRequest) -> tuple[Question, ...]:
    return (*request.portability, *request.unrelated)


def _answer_lengths(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> Iterator[int]:
    """Tokens of the longest right answer to each question."""
    pairs = [(question.prompt, answer) for question in questions for answer in question.answers]
    lengths = iter(continuation_ids(tokenizer, [prompt for prompt, _ in pairs], [answer for _, answer in pairs]))
    return (max(len(next(lengths).target) for _ in question.answers) for question in questions)


def _require_match(name: str, answers: RequestAnswers, requests: Sequence[EditRequest]) -> None:
    expected = [
        (len(one.paraphrase_prompts), len(one.neighborhood_prompts), len(one.portability), len(one.unrelated))
        for one in requests
    ]
    kinds = (answers.paraphrases, answers.neighborhood, answers.portability, answers.unrelated)
    given = [tuple(len(part) for part in parts) for parts in zip(*kinds, strict=True)]
    others = bool(answers.asked) and answers.asked != tuple(request.text for request in requests)
    if given != expected or len(answers.prompts) != len(requests) or others:
        raise ValueError(f"{name}: hold answers to {len(given)} other requests than the {len(requests)} given")
    given_in_chat = [one is not None for one in answers.chat]
    if answers.chat and given_in_chat != [asks_in_chat(request) for request in requests]:
        raise ValueError(f"{name}: hold answers in chat to other requests than those that are asked so")
