"""One batch of a session: attempted, verified, tried again, restrained, shown to the callbacks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..editors import Edit, Editor
from ..errors import EditFailedError, InvalidRequestError
from ..monitoring import BatchReport
from ..processes import same, together
from ..requests import EditRequest
from .asking import Asking
from .records import (
    APPLIED,
    FAILED,
    REJECTED,
    BatchRecord,
    Chat,
    EditRecord,
    Factors,
    relation_key,
    state_seen,
    subject_key,
)
from .replay import Addition, joined, split
from .results import EditResult
from .verification import Verification, require_editable
from .workspace import Workspace

SKIP, RAISE, KEEP, CONSOLIDATE = "skip", "raise", "keep", "consolidate"
ON_FAILURE = (SKIP, RAISE, KEEP, CONSOLIDATE)
"""What can become of an edit that does not take: see `EditSession`."""


@dataclass(frozen=True)
class Given:
    """What was asked for: a request, or what is wrong with it; and its JSON for the log."""

    request: EditRequest | None
    raw: str
    error: str | None = None

    @classmethod
    def of(cls, item: Any, asking: Asking) -> Given:
        """Read one item of a call to ``edit``; it is asked as it says, or as the session does."""
        if isinstance(item, EditRequest):
            return cls(asking.settled(item), "")
        raw = json.dumps({"invalid": item}, default=str)
        try:
            return cls(asking.settled(EditRequest.from_record(item)), raw)
        except InvalidRequestError as error:
            return cls(None, raw, str(error))


def in_batches(given: Sequence[Given], size: int) -> Iterator[list[Given]]:
    """Batches of at most ``size``, in order; requests on one subject and relation never share one."""
    batch: list[Given] = []
    facts: set[tuple[str, str]] = set()
    for item in given:
        fact = None if item.request is None else (subject_key(item.request), relation_key(item.request))
        if len(batch) == size or fact in facts:
            yield batch
            batch, facts = [], set()
        batch.append(item)
        facts |= set() if fact is None else {fact}
    if batch:
        yield batch


@dataclass
class _Attempt:
    """What became of one request so far."""

    status: str = FAILED
    reason: str | None = None
    factors: Factors | None = None
    after: Verification | None = None
    taken: float | None = None
    stronger: str | None = None
    appended: int | None = None
    leader: int | None = None

    @property
    def state(self) -> str:
        """What has become of it since it took, where it did."""
        if self.status != APPLIED or self.after is None:
            return self.status
        return state_seen(self.after.holds, self.after.probability, self.taken)


@dataclass
class Batch:
    """The work of one batch; the caller sees to it that the adapter is as before if it ends with an error.

    Args:
        workspace: Adapter, keys and history.
        given: What was asked for.
        on_failure: As in `EditSession`.
        on_conflict: The same.
    """

    workspace: Workspace
    given: Sequence[Given]
    on_failure: str
    on_conflict: str
    attempts: dict[int, _Attempt] = field(default_factory=dict)
    before: dict[int, Verification] = field(default_factory=dict)
    conflicts: dict[int, list[int]] = field(default_factory=dict)
    additions: list[Addition] = field(default_factory=list)
    added: list[Factors] = field(default_factory=list)
    restrained: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        history = self.workspace.history
        self.number, self.first = history.last_batch + 1, history.last_edit + 1
        self._next = history.last_append + 1
        self._state, self._keys = self.workspace.model.edit_state(), self.workspace.keys

    def run(self) -> None:
        """Edit, verify and restrain."""
        work = self.workspace
        usable = [index for index, item in enumerate(self.given) if self._is_usable(index, item)]
        requests = [self._request(index) for index in usable]
        self.before = dict(zip(usable, work.verify(requests), strict=True))
        replaced = [edit for edits in self.conflicts.values() for edit in edits]
        if replaced:
            work.rebuild(without=replaced)
        if usable:
            self._attempt(usable, work.editor)
        self._try_again()
        if self.on_failure in (KEEP, CONSOLIDATE):
            for index in usable:
                # one that replaces another must take by itself, or the other stays
                if self.on_failure == KEEP or index not in self.conflicts:
                    self._keep(index)
        if any(not self._stands(index) for index in self.conflicts):
            # the new edit did not take, so what it was to replace stays
            work.rebuild(without=self.undone, new=self.additions, new_keys=self.added)
        names = work.model.restrain_if_due()
        self._note_restraint(names)
        if names or len(self.additions) > 1:
            self._look_again()

    @property
    def undone(self) -> dict[int, str]:
        """Edits that this batch replaces, with the reason for the log."""
        return {
            edit: f"replaced by edit {self.first + index}"
            for index, edits in self.conflicts.items()
            if self._stands(index)
            for edit in edits
        }

    @property
    def added_edits(self) -> int:
        """How many edits it has added to the factors."""
        return sum(addition.edits for addition in self.additions)

    def report(self, seconds: float) -> BatchReport:
        """What the callbacks get to see."""
        figures = self.workspace.figures() if self.workspace.monitor is not None else {}
        return BatchReport(
            batch=self.number,
            results=self._results(figures),
            edits=self._standing(),
            figures=figures,
            seconds=seconds,
            restrained=list(self.restrained),
        )

    def restrain_now(self, report: BatchReport) -> None:
        """Apply the restraint whatever the schedule, and bring the report up to date."""
        self.workspace.model.restrain()
        self._note_restraint([name for name, _ in self.workspace.model.edited_layers()])
        self._look_again()
        self._refresh(report)

    def roll_back(self, report: BatchReport) -> None:
        """Take the batch out again, for the first callback that asked for it, and bring the report up to date."""
        work, alert = self.workspace, report.asks_for("rollback")[0]
        work.model.restore_edit_state(self._state)
        work.keys = self._keys
        self.additions, self.added, self.restrained, self.conflicts = [], [], {}, {}
        for attempt in self.attempts.values():
            attempt.appended = attempt.leader = None
            if attempt.status == APPLIED:
                attempt.status, attempt.reason = FAILED, f"rolled back by {alert.source}: {alert.message}"
        self._refresh(report)
        report.measurements.clear()  # they are of the model with this batch

    def _refresh(self, report: BatchReport) -> None:
        fresh = self.report(report.seconds)
        report.results, report.figures, report.restrained = fresh.results, fresh.figures, fresh.restrained
        report.edits = fresh.edits

    def record(self, report: BatchReport, seconds: float) -> BatchRecord:
        """What is written to the history."""
        edits = [self._edit_record(index, result) for index, result in enumerate(report.results)]
        return BatchRecord(
            id=self.number,
            seconds=seconds,
            edits=edits,
            raw={record.id: item.raw for record, item in zip(edits, self.given, strict=True)},
            factors={
                self.first + index: attempt.factors
                for index, attempt in self.attempts.items()
                if attempt.factors is not None and attempt.leader == self.first + index
            },
            restraints=self.restrained,
            figures=report.figures,
            measurements=report.measurements,
            alerts=report.alerts,
            undone=self.undone,
            seen={
                self.first + index: attempt.after
                for index, attempt in self.attempts.items()
                if self._stands(index) and attempt.after is not None
            },
        )

    def _request(self, index: int) -> EditRequest:
        request = self.given[index].request
        assert request is not None
        return request

    def _is_usable(self, index: int, item: Given) -> bool:
        work = self.workspace
        attempt = self.attempts[index] = _Attempt()
        if item.request is None:
            attempt.status, attempt.reason = REJECTED, item.error
            return False
        try:
            work.editor.require_taken(item.request)
            require_editable(work.model, work.tokenizer, item.request)
        except InvalidRequestError as error:
            attempt.status, attempt.reason = REJECTED, str(error)
            return False
        found = work.conflicts(item.request)
        if found and self.on_conflict == "reject":
            attempt.status, attempt.reason = REJECTED, f"it contradicts edit {found[0]}, which stands"
            return False
        if found and self.on_conflict == "replace":
            self.conflicts[index] = found
        return True

    def _attempt(self, indices: Sequence[int], editor: Editor, stronger: str | None = None) -> None:
        work = self.workspace
        requests = [self._request(index) for index in indices]
        state = work.model.edit_state()
        try:
            edit = self._computed(editor, requests)
            parts = split(edit)
            work.model.add_edits(joined(list(parts.values())), edits=len(indices), on_schedule=False)
        except (InvalidRequestError, EditFailedError) as error:
            work.model.restore_edit_state(state)
            if len(indices) > 1:
                self._one_by_one(indices, editor, stronger)
                return
            status = REJECTED if isinstance(error, InvalidRequestError) else FAILED
            self.attempts[indices[0]] = _Attempt(status, str(error), stronger=stronger)
            return
        found, failed = self._verified(state, parts, requests)
        if failed and len(indices) > 1 and len(parts) < len(indices):
            self._one_by_one(indices, editor, stronger)
            return
        kept = [place for place in range(len(indices)) if place not in failed]
        for place, index in enumerate(indices):
            self.attempts[index] = _Attempt(
                APPLIED if place in kept else FAILED,
                None if place in kept else self._why(found[place], requests[place]),
                parts.get(place),
                found[place],
                found[place].probability if place in kept else None,
                stronger,
            )
        if kept:
            self._note_addition([indices[place] for place in kept], together=len(parts) < len(indices))

    def _computed(self, editor: Editor, requests: Sequence[EditRequest]) -> Edit:
        """The editor's edit; of several processes that of rank 0, so that all have the same adapter."""
        work = self.workspace
        with together("an edit"):
            earlier = work.keys.owing(work.model.owed())
            searched = [work.asking.searched(request) for request in requests]
            own = editor.compute(work.model, work.tokenizer, searched, work.prepared, earlier)
        return same("an edit's factors", lambda: own).beside(own)

    def _one_by_one(self, indices: Sequence[int], editor: Editor, stronger: str | None) -> None:
        for index in indices:
            self._attempt([index], editor, stronger)

    def _verified(
        self, state: Any, parts: Mapping[int, Factors], requests: Sequence[EditRequest]
    ) -> tuple[dict[int, Verification], set[int]]:
        """What the model says, and the places of those that did not take and are out of the factors again."""
        work, failed = self.workspace, set[int]()
        found: dict[int, Verification] = {}
        while True:
            kept = [place for place in range(len(requests)) if place not in failed]
            answers = work.verify([requests[place] for place in kept])
            found |= dict(zip(kept, answers, strict=True))
            new = {place for place in kept if not found[place].holds}
            if not new:
                return found, failed
            failed |= new
            work.model.restore_edit_state(state)
            rest = [parts[place] for place in range(len(requests)) if place not in failed and place in parts]
            if len(failed) == len(requests) or len(parts) < len(requests):
                return found, failed
            work.model.add_edits(joined(rest), edits=len(rest), on_schedule=False)

    def _try_again(self) -> None:
        editor = self.workspace.editor.stronger()
        failed = [
            index
            for index, attempt in self.attempts.items()
            if attempt.status == FAILED and self.given[index].request is not None
        ]
        if editor is None or not failed:
            return
        old = dataclasses.asdict(self.workspace.editor.hyperparameters)
        changed = {k: v for k, v in dataclasses.asdict(editor.hyperparameters).items() if v != old[k]}
        text = ", ".join(f"{name}={value:g}" for name, value in changed.items())
        self._attempt(failed, editor, text)

    def _keep(self, index: int) -> None:
        attempt = self.attempts[index]
        if attempt.status != FAILED or attempt.factors is None:
            return
        self.workspace.model.add_edits(joined([attempt.factors]), edits=1, on_schedule=False)
        self._note_addition([index], together=False)

    def _note_addition(self, indices: Sequence[int], *, together: bool) -> None:
        leaders = indices[:1] if together else indices
        parts = [factors for i in leaders if (factors := self.attempts[i].factors) is not None]
        for index in indices:
            self.attempts[index].appended = self._next
            self.attempts[index].leader = self.first + (indices[0] if together else index)
        self._next += 1
        self.additions.append(Addition(self.number, joined(parts), len(indices)))
        self.added += parts
        work = self.workspace
        work.keys = work.keys.plus(parts)

    def _stands(self, index: int) -> bool:
        return self.attempts[index].appended is not None

    def _standing(self) -> int:
        return self.workspace.history.standing - len(self.undone) + sum(self._stands(index) for index in self.attempts)

    def _note_restraint(self, names: Sequence[str]) -> None:
        work = self.workspace
        words = work.restraints()
        self.restrained |= {name: words[name] for name in names}

    def _look_again(self) -> None:
        standing = [index for index in self.attempts if self._stands(index)]
        requests = [self._request(index) for index in standing]
        found = self.workspace.verify(requests)
        for index, one in zip(standing, found, strict=True):
            self.attempts[index].after = one

    def _results(self, figures: Mapping[str, Any]) -> list[EditResult]:
        conditions = {name: layer.condition_number for name, layer in figures.items()}
        found = []
        for index, item in enumerate(self.given):
            attempt, before = self.attempts[index], self.before.get(index)
            found.append(
                EditResult(
                    id=self.first + index,
                    request=item.request,
                    status=attempt.state,
                    reason=attempt.reason,
                    stronger=attempt.stronger,
                    probability_before=None if before is None else before.probability,
                    probability_after=None if attempt.after is None else attempt.after.probability,
                    answer_before=None if before is None else before.answer,
                    answer_after=None if attempt.after is None else attempt.after.answer,
                    chat=Chat.of(before, attempt.after),
                    stands=self._stands(index),
                    replaced=tuple(self.conflicts.get(index, ())) if self._stands(index) else (),
                    condition_numbers=conditions,
                )
            )
        return found

    def _edit_record(self, index: int, result: EditResult) -> EditRecord:
        attempt = self.attempts[index]
        return EditRecord(
            id=result.id,
            batch=self.number,
            request=result.request,
            status=attempt.status,
            reason=result.reason,
            stronger=result.stronger,
            probability_before=result.probability_before,
            probability_after=result.probability_after,
            answer_before=result.answer_before,
            answer_after=result.answer_after,
            chat=result.chat,
            appended=attempt.appended,
            leader=attempt.leader,
            probability_taken=attempt.taken,
        )

    def _why(self, found: Verification, request: EditRequest) -> str:
        return f"did not take: the edited model answers {found.answer.strip()!r} instead of {request.target_new!r}"
