"""A sequence of edits: compute on the effective model, add to the adapter, verify, roll out what did not take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..editors import Edit, Editor, Prepared
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
    batch_size: int = 1,
    after_edit: Callable[[EditOutcome], None] | None = None,
) -> list[EditOutcome]:
    """Apply the requests in order; each batch is computed on the model as the batches before it left it.

    An edit is verified by free greedy generation on its bare prompt, not by teacher forcing. One that did not take is
    rolled out of the factors and reported with its reason; the sequence goes on. Of a batch, those that took stay
    without the others' share. A batch that cannot be computed is tried again one by one.

    Args:
        model: A PEFT model with one active PRUNE_EDIT adapter.
        tokenizer: The model's tokenizer.
        editor: Computes the update of an edit.
        prepared: What ``editor.prepare`` gave for the unedited model.
        requests: The edits, in order.
        batch_size: How many requests are computed together.
        after_edit: Called with every outcome, for progress and monitoring.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} must be at least 1")
    run = _Sequence(model, tokenizer, editor, prepared)
    outcomes = []
    for start in range(0, len(requests), batch_size):
        for outcome in run.batch(start, requests[start : start + batch_size]):
            outcomes.append(outcome)
            if after_edit is not None:
                after_edit(outcome)
    return outcomes


@dataclass
class _Sequence:
    """The model as edited so far, and the keys of the edits that stand."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    editor: Editor
    prepared: Prepared
    keys: dict[str, Tensor] = field(default_factory=dict)

    def batch(self, start: int, requests: Sequence[EditRequest]) -> Iterator[EditOutcome]:
        """Outcomes of requests that are computed together, the first of which has the index ``start``."""
        before = self.model.edit_state()
        try:
            edit = self.editor.compute(self.model, self.tokenizer, requests, self.prepared, self.keys)
            self.model.add_edits(edit.updates, edits=len(requests))
        except (InvalidRequestError, EditFailedError) as error:
            self.model.restore_edit_state(before)
            if len(requests) == 1:
                yield EditOutcome(start, requests[0], applied=False, reason=str(error))
            else:
                yield from self._one_by_one(start, requests)
            return
        answers, failed = self._verified(before, edit, requests)
        if failed and len(requests) > 1 and not edit.is_separable:
            yield from self._one_by_one(start, requests)
            return
        for name, keys in (edit.without(failed) if failed and edit.is_separable else edit).keys.items():
            self.keys[name] = torch.cat([self.keys[name], keys]) if name in self.keys else keys
        for offset, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            reason = None
            if offset in failed:
                reason = f"did not take: the edited model answers {answer.strip()!r} instead of {request.target_new!r}"
            yield EditOutcome(start + offset, request, reason is None, reason, answer)

    def _one_by_one(self, start: int, requests: Sequence[EditRequest]) -> Iterator[EditOutcome]:
        for offset, request in enumerate(requests):
            yield from self.batch(start + offset, [request])

    def _verified(self, before: Any, edit: Edit, requests: Sequence[EditRequest]) -> tuple[list[str], set[int]]:
        """Answers to the bare prompts, and indices of those that did not take and are out of the factors."""
        failed: set[int] = set()
        final: dict[int, str] = {}
        while True:
            kept = [index for index in range(len(requests)) if index not in failed]
            answers = _greedy_answers(self.model, self.tokenizer, [requests[index] for index in kept])
            final |= dict(zip(kept, answers, strict=True))
            new = {index for index in kept if not answers_with(final[index], requests[index].target_new)}
            if not new:
                break
            failed |= new
            self.model.restore_edit_state(before)
            if len(failed) == len(requests) or not edit.is_separable:
                break
            self.model.add_edits(edit.without(failed).updates, edits=len(requests) - len(failed))
        return [final[index] for index in range(len(requests))], failed


def _greedy_answers(model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]) -> list[str]:
    texts = [request.text for request in requests]
    pairs = continuation_ids(tokenizer, texts, [request.target_new for request in requests])
    return greedy_answers(model, tokenizer, texts, max_new_tokens=[len(pair.target) for pair in pairs])
