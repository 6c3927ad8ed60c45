"""A sequence of edits: compute on the effective model, add to the adapter, verify, roll out what did not take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..editors import Editor, Prepared
from ..errors import EditFailedError, InvalidRequestError
from ..generation import answers_with, greedy_answers
from ..requests import EditRequest
from ..tokenization import continuation_ids


@dataclass(frozen=True)
class EditOutcome:
    """What became of one request.

    Args:
        index: Its place in the sequence, from 0.
        request: The request.
        applied: Whether its update is in the adapter.
        reason: Why not, in one line; None for an edit that took.
        answer: What the edited model answers to the bare prompt by greedy decoding; None where nothing was added.
    """

    index: int
    request: EditRequest
    applied: bool
    reason: str | None = None
    answer: str | None = None


def edit_in_sequence(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    editor: Editor,
    prepared: Prepared,
    requests: Sequence[EditRequest],
    *,
    after_edit: Callable[[EditOutcome], None] | None = None,
) -> list[EditOutcome]:
    """Apply the requests one by one; each edit is computed on the model as the edits before it left it.

    An edit is verified by free greedy generation on its bare prompt, not by teacher forcing. One that did not take is
    rolled out of the factors, bit for bit, and reported with its reason; the sequence goes on.

    Args:
        model: A PEFT model with one active PRUNE_EDIT adapter.
        tokenizer: The model's tokenizer.
        editor: Computes the update of an edit.
        prepared: What ``editor.prepare`` gave for the unedited model.
        requests: The edits, in order.
        after_edit: Called with every outcome, for progress and monitoring.
    """
    outcomes = []
    for outcome in _outcomes(model, tokenizer, editor, prepared, requests):
        outcomes.append(outcome)
        if after_edit is not None:
            after_edit(outcome)
    return outcomes


def _outcomes(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    editor: Editor,
    prepared: Prepared,
    requests: Sequence[EditRequest],
) -> Iterator[EditOutcome]:
    for index, request in enumerate(requests):
        before = model.edit_state()
        try:
            edit = editor.compute(model, tokenizer, [request], prepared)
            model.add_edits(edit.updates)
        except (InvalidRequestError, EditFailedError) as error:
            yield EditOutcome(index, request, applied=False, reason=str(error))
            continue
        answer = _greedy_answer(model, tokenizer, request)
        if answers_with(answer, request.target_new):
            yield EditOutcome(index, request, applied=True, answer=answer)
            continue
        model.restore_edit_state(before)
        reason = f"did not take: the edited model answers {answer.strip()!r} instead of {request.target_new!r}"
        yield EditOutcome(index, request, applied=False, reason=reason, answer=answer)


def _greedy_answer(model: Any, tokenizer: PreTrainedTokenizerBase, request: EditRequest) -> str:
    (continuation,) = continuation_ids(tokenizer, [request.text], [request.target_new])
    return greedy_answers(model, tokenizer, [request.text], max_new_tokens=len(continuation.target))[0]
