"""Figures taken right after each edit, beside those taken after all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..models.inference import undisturbed
from ..monitoring import BatchReport, SessionCallback
from ..requests import EditRequest
from .editing import request_answers, request_outcomes
from .estimates import Proportion


class ImmediateScores(SessionCallback):
    """Scores every request of a session once its own batch is settled: the moment `immediate`.

    The moment `final` is what :func:`~peft_prune.evaluation.evaluate` measures after all edits. Published figures are
    of either kind, often without saying so; an edit that holds when it is made and is lost later shows in the
    difference. Requests that were rejected or skipped have changed nothing and are left out.

    Args:
        batch_size: Most prompts in one batch.
    """

    def __init__(self, batch_size: int = 64) -> None:
        self._batch_size = batch_size
        self._waiting: list[EditRequest] = []
        self.outcomes: dict[str, list[tuple[bool, ...]]] = {}

    def on_batch_begin(self, session: Any, requests: Sequence[Any]) -> None:
        self._score(session)

    def on_batch_end(self, session: Any, report: BatchReport) -> None:
        # what other callbacks ask for is still to come, so the batch is scored when the next event shows it settled
        self._waiting = [r.request for r in report.results if r.request is not None and r.answer_before is not None]

    def on_edit_end(self, session: Any) -> None:
        self._score(session)

    def figures(self) -> dict[str, Proportion]:
        """The figures of :func:`~peft_prune.evaluation.score_requests`, at the moment `immediate`."""
        return {kind: Proportion.of_clusters(own) for kind, own in self.outcomes.items()}

    def _score(self, session: Any) -> None:
        requests, self._waiting = self._waiting, []
        if not requests:
            return
        found = immediate_outcomes(session.model, session.tokenizer, requests, batch_size=self._batch_size)
        for kind, own in found.items():
            self.outcomes.setdefault(kind, []).extend(own)


def immediate_outcomes(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], *, batch_size: int = 64
) -> dict[str, list[tuple[bool, ...]]]:
    """Outcomes of ``requests`` on the model as it is now, locality against the base's own answers."""
    with undisturbed(model), model.disable_adapter():
        base_answers = request_answers(model, tokenizer, requests, batch_size=batch_size)
    return request_outcomes(model, tokenizer, requests, base_answers=base_answers, batch_size=batch_size)
