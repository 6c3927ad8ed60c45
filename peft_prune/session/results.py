"""What becomes of an edit request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..errors import EditFailedError
from ..requests import EditRequest
from .records import APPLIED, LOST, UNDONE, WEAKENED, Chat, EditRecord, Look


@dataclass(frozen=True)
class EditResult:
    """What became of one request.

    Args:
        id: Its number in the history, by which it can be undone.
        request: The request; None where what was given is no valid one.
        status: One of `STATES`, as the edit was seen last. Of an edit that took: "applied" while the model's free
            answer gives the target; "weakened" where it still does, with less than half of the probability with which
            it took; "lost" where it no longer does; "undone" once it is taken out. Of the others: "failed", the edited
            model has never given the target; "rejected", it cannot be edited at all; "skipped", the session was stopped
            before it was tried.
        reason: Why it was not applied, or is no longer, in one line.
        stronger: The stronger setting it was retried with, where it was.
        probability_before: Of the target after the bare prompt, before the batch: the geometric mean over its tokens,
            as in the value search of ROME. None where it was not tried.
        probability_after: The same after the batch and its restraint.
        answer_before: Greedy answer to the bare prompt, before.
        answer_after: The same after.
        stands: Whether its factors are in the adapter.
        replaced: Earlier edits that were undone because this one contradicts them.
        condition_numbers: κ(W0 + ΔW) of every layer after its batch, where the session monitors.
        seen: What was seen of it last, and when; None where it was not looked at since its batch.
        chat: What is said to it in chat, where it is asked both ways; an edit that holds plainly and not in chat is
            "applied" all the same, and this says so.
    """

    id: int
    request: EditRequest | None
    status: str
    reason: str | None = None
    stronger: str | None = None
    probability_before: float | None = None
    probability_after: float | None = None
    answer_before: str | None = None
    answer_after: str | None = None
    stands: bool = False
    replaced: tuple[int, ...] = ()
    condition_numbers: Mapping[str, float] = field(default_factory=dict)
    seen: Look | None = None
    chat: Chat | None = None

    @classmethod
    def of(cls, record: EditRecord) -> EditResult:
        """What a history knows of an edit; the figures of its batch stand in a table of their own."""
        return cls(
            id=record.id,
            request=record.request,
            status=record.state,
            reason=_reason(record),
            stronger=record.stronger,
            probability_before=record.probability_before,
            probability_after=record.probability_after,
            answer_before=record.answer_before,
            answer_after=record.answer_after,
            stands=record.stands,
            seen=record.seen,
            chat=record.chat,
        )

    def as_seen(self, record: EditRecord) -> EditResult:
        """The result with what has become of the edit since."""
        return replace(
            self, status=record.state, reason=_reason(record), stands=record.stands, seen=record.seen, chat=record.chat
        )

    @property
    def took(self) -> bool:
        """Whether the edited model gave the target when the edit was verified, whatever became of it since."""
        return self.status in (APPLIED, WEAKENED, LOST, UNDONE)

    @property
    def holds_in_chat(self) -> bool | None:
        """Whether it was given in chat when it was seen last; None where it is not asked both ways."""
        return None if self.chat is None else self.chat.holds and self.applied

    @property
    def applied(self) -> bool:
        """Whether the edit took and its target was still the model's answer when it was seen last."""
        return self.status in (APPLIED, WEAKENED)


def _reason(record: EditRecord) -> str | None:
    if record.state == UNDONE:
        return f"undone: {record.undone_reason}"
    if record.state in (APPLIED, WEAKENED):
        return None
    if record.state != LOST or record.request is None:
        return record.reason
    answer = record.answer_after if record.seen is None else record.seen.answer
    return (
        f"took, and was lost: the model now answers {(answer or '').strip()!r} instead of {record.request.target_new!r}"
    )


class BatchFailedError(EditFailedError):
    """Some edits of a call did not take and ``on_failure`` is "raise"; what took stands and is in the history.

    Args:
        message: One line.
        results: Of all requests that were tried so far.
    """

    def __init__(self, message: str, results: list[EditResult]) -> None:
        super().__init__(message)
        self.results = results
