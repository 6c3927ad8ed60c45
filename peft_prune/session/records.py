"""What a history holds: factors, edits, restraints and batches, and the keys by which edits are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..editors.asking import asks_plainly
from ..monitoring import Alert, LayerCondition
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .verification import Verification, gives

APPLIED, FAILED, REJECTED, SKIPPED = "applied", "failed", "rejected", "skipped"
WEAKENED, LOST, UNDONE = "weakened", "lost", "undone"
STATES = (APPLIED, WEAKENED, LOST, UNDONE, FAILED, REJECTED, SKIPPED)
"""What can have become of an edit: see `state_seen` for the first three."""

WEAK_SHARE = 0.5
"""An edit is weakened whose target has less than this share of the probability with which the edit took."""


@dataclass(frozen=True)
class Factors:
    """What one edit added: updates B (out, k), A (k, in) and keys (1, in) by module name, float32.

    Args:
        updates: See above.
        keys: For editors that keep a history.
        features: What it brings to running statistics, (2, 1 + in + out), for editors that normalise by them.
    """

    updates: Mapping[str, LowRankUpdate]
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Both as safetensors."""
        tensors: dict[str, Tensor] = {}
        for name, update in self.updates.items():
            tensors |= {f"{name}.B": update.B, f"{name}.A": update.A}
        # a key may be a view of a factor, and safetensors takes no two of one memory
        tensors |= {f"{name}.key": key.clone() for name, key in self.keys.items()}
        tensors |= {f"{name}.features": part.clone() for name, part in self.features.items()}
        return save_tensors({name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Factors:
        """What `to_bytes` wrote.

        Raises:
            SafetensorError: It is no safetensors file.
            ValueError: A tensor is missing, or none of this kind.
        """
        tensors = load_tensors(data)
        for name, tensor in tensors.items():
            if (
                not name.endswith((".A", ".B", ".key", ".features"))
                or tensor.dtype != torch.float32
                or tensor.dim() != 2
            ):
                raise ValueError(f"{name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}")
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name!r} holds NaN or Inf")
        names = sorted({name[:-2] for name in tensors if name.endswith((".A", ".B"))})
        for name in names:
            up, down = tensors.get(f"{name}.B"), tensors.get(f"{name}.A")
            if up is None or down is None or up.shape[1] != down.shape[0]:
                raise ValueError(f"{name!r} has no two factors of one rank")
        updates = {name: LowRankUpdate(tensors[f"{name}.B"], tensors[f"{name}.A"]) for name in names}

        def ending(word: str) -> dict[str, Tensor]:
            return {n.removesuffix(word): tensor for n, tensor in tensors.items() if n.endswith(word)}

        return cls(updates, ending(".key"), ending(".features"))


@dataclass(frozen=True)
class Look:
    """An edit as the model held it at one moment.

    Args:
        at: When it was looked at.
        batch: The last batch before.
        cause: What made it necessary: "edit", "restraint", "undo", "strengths", "tune", "save" or "verify".
        answer: Greedy answer to the bare prompt.
        probability: Of the target there; None where it is no number.
        holds: Whether the answer gives the target.
    """

    at: str
    batch: int
    cause: str
    answer: str
    probability: float | None
    holds: bool


@dataclass(frozen=True)
class Chat:
    """What a model said in chat to an edit that is asked both ways.

    Args:
        before: Greedy answer to its question in the chat template, before the edit; None where it was not asked.
        answer: The same as it was seen last.
        holds: Whether that gives the target.
    """

    before: str | None
    answer: str
    holds: bool

    @classmethod
    def of(cls, before: Verification | None, after: Verification | None) -> Chat | None:
        """What two looks have seen, None where the edit is not asked both ways."""
        if after is None or after.chat is None:
            return None
        first = None if before is None or before.chat is None else before.chat.answer
        return cls(first, after.chat.answer, after.chat.holds)


def state_seen(holds: bool, probability: float | None, taken: float | None) -> str:
    """What an edit that took has become: "applied", "weakened" or "lost".

    Args:
        holds: Whether the model's greedy answer gives the target now.
        probability: Of the target now.
        taken: The same when the edit took.
    """
    if not holds:
        return LOST
    if taken is None:
        return APPLIED
    # a probability that is no number is a loss as well
    return APPLIED if probability is not None and probability >= WEAK_SHARE * taken else WEAKENED


@dataclass(frozen=True)
class EditRecord:
    """One edit as the history knows it.

    Args:
        id: Its number; the first is 1.
        batch: The batch it was tried in.
        request: The request; None where what was asked for was no valid request.
        status: What its own batch made of it: "applied" where it took, "failed", "rejected" or "skipped". What has
            become of it is its ``state``.
        reason: Why it was not applied, in one line.
        stronger: The stronger setting that it was retried with, where it was.
        probability_before: Of the target on the bare prompt, before; the geometric mean over its tokens.
        probability_after: The same after the batch and its restraint.
        answer_before: Greedy answer to the bare prompt before.
        answer_after: The same after.
        appended: Which addition to the factors holds it; None where nothing was added.
        leader: The edit whose row holds its factors: its own id, or another's where a batch cannot be taken apart.
        strength: What its factors are multiplied with.
        undone_at: When it was undone, or None.
        undone_by: Who undid it.
        undone_reason: Why.
        probability_taken: Of the target when the edit took, before any restraint; of one that did not and was kept,
            when it was first seen to hold.
        seen: The last look at it; None in a history of an earlier version, and where nothing was added.
        chat: What is said to it in chat, where it is asked both ways.
    """

    id: int
    batch: int
    request: EditRequest | None
    status: str
    reason: str | None = None
    stronger: str | None = None
    probability_before: float | None = None
    probability_after: float | None = None
    answer_before: str | None = None
    answer_after: str | None = None
    appended: int | None = None
    leader: int | None = None
    strength: float = 1.0
    undone_at: str | None = None
    undone_by: str | None = None
    undone_reason: str | None = None
    probability_taken: float | None = None
    seen: Look | None = None
    chat: Chat | None = None

    @property
    def stands(self) -> bool:
        """Whether its factors are in the adapter."""
        return self.appended is not None and self.undone_at is None

    @property
    def state(self) -> str:
        """One of `STATES`: what has become of it, as it was seen last."""
        if not self.has_taken:
            return self.status
        if self.undone_at is not None:
            return UNDONE
        if self.seen is not None:
            return state_seen(self.seen.holds, self.seen.probability, self.reference)
        return APPLIED if self.took else LOST

    @property
    def reference(self) -> float | None:
        """The probability with which it took; in a history of an earlier version the one after its batch."""
        return self.probability_after if self.seen is None else self.probability_taken

    @property
    def has_taken(self) -> bool:
        """Whether the model has given the target, when the edit was made or, of one that was kept, at a later look."""
        later = self.probability_taken is not None or (self.seen is not None and self.seen.holds)
        return self.status == APPLIED or (self.status == FAILED and later)

    @property
    def took(self) -> bool:
        """Whether the model gave the target once the edit's own batch, with its restraint, was done."""
        if self.status != APPLIED or self.request is None:
            return False
        if self.answer_after is None:
            return True
        return gives(self.request, self.answer_after, chat=not asks_plainly(self.request))


@dataclass(frozen=True)
class RestraintRecord:
    """The restraint acted on a module after a batch."""

    batch: int
    module: str
    restraint: str


@dataclass(frozen=True)
class BatchRecord:
    """Everything of one batch that is written in one transaction.

    Args:
        id: Its number.
        seconds: What it took.
        edits: All of them, whatever became of them.
        raw: What was asked for, as JSON, for those that were no valid request; by edit id.
        factors: By the id of the leading edit.
        restraints: Modules that the restraint acted on, and its word.
        figures: By module.
        measurements: Of probes, by name.
        alerts: Of callbacks.
        undone: Edits that this batch replaced, by id, with the reason.
        seen: What the model says to the edits that stand, once the batch and its restraint are done, by id.
    """

    id: int
    seconds: float
    edits: Sequence[EditRecord]
    raw: Mapping[int, str] = field(default_factory=dict)
    factors: Mapping[int, Factors] = field(default_factory=dict)
    restraints: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, LayerCondition] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)
    alerts: Sequence[Alert] = ()
    undone: Mapping[int, str] = field(default_factory=dict)
    seen: Mapping[int, Verification] = field(default_factory=dict)


def subject_key(request: EditRequest) -> str:
    """A request's subject as it is compared: case folded, single spaces; "" where there is none."""
    return " ".join((request.subject or "").split()).casefold()


def relation_key(request: EditRequest) -> str:
    """A request's relation as it is compared: its identifier, or else its prompt template.

    Without a subject it is the whole prompt, for two questions of one relation may be about two things.
    """
    known = request.relation_id if request.subject is not None else None
    return known or " ".join(request.prompt.split()).casefold()
