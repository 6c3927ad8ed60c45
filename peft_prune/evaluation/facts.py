"""Recall of facts that no edit is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import InvalidRequestError
from ..models.inference import Progress
from ..models.tokenization import continuation_ids
from ..requests import EditRequest, read_records
from .estimates import Proportion
from .subjects import edited_subjects, names_any
from .token_probabilities import next_tokens


@dataclass(frozen=True)
class Fact:
    """A prompt and the object that completes it, both non-empty; the object without a leading space.

    Raises:
        InvalidRequestError: A field is not a string, or is empty.
    """

    prompt: str
    object: str

    def __post_init__(self) -> None:
        for field in ("prompt", "object"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise InvalidRequestError(f"{field}: {value!r} must be a non-empty string")


def load_facts(path: str | Path) -> list[Fact]:
    """Read facts from a JSON list, or a JSONL file, of objects with ``prompt`` and ``object``.

    Raises:
        InvalidRequestError: The file is missing, unreadable, empty, or a record is malformed (which, and which field).
    """
    facts = []
    for index, record in enumerate(read_records(path)):
        try:
            facts.append(_fact(record))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path}: record {index}: {error}") from None
    return facts


def exclude_subjects(facts: Sequence[Fact], requests: Sequence[EditRequest]) -> list[Fact]:
    """The facts whose prompt names no edited subject, as whole words and with the same capitals."""
    subjects = edited_subjects(requests)
    return [fact for fact in facts if not names_any(fact.prompt, subjects)]


def recall(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Proportion:
    """The share of facts whose object's first token is the model's most probable token after the prompt.

    The first token alone counts: "South Korea" passes for "South Africa", and a longer object is not spelled out.

    Raises:
        InvalidRequestError: A prompt or an object gives no token, or a prompt does not fit the model.
    """
    return Proportion.of(recalled(model, tokenizer, facts, batch_size=batch_size, progress=progress))


def recalled(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[bool]:
    """Whether each fact's object begins with the model's most probable token; a probe for guards and for tuning.

    Raises:
        InvalidRequestError: A prompt or an object gives no token, or a prompt does not fit the model.
    """
    pairs = continuation_ids(tokenizer, [fact.prompt for fact in facts], [fact.object for fact in facts])
    tokens = next_tokens(model, [pair.prompt for pair in pairs], batch_size=batch_size, progress=progress)
    return [token == pair.target[0] for token, pair in zip(tokens, pairs, strict=True)]


def known_facts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[Fact]:
    """The facts that the model knows, in their order: those whose recall can be lost.

    A small model knows few of what is asked of large ones, and a share of all facts then says nothing of what edits
    cost.

    Raises:
        InvalidRequestError: It knows none of them; else as `recalled`.
    """
    known = recalled(model, tokenizer, facts, batch_size=batch_size, progress=progress)
    found = [fact for fact, is_known in zip(facts, known, strict=True) if is_known]
    if not found:
        raise InvalidRequestError(f"facts: the model knows none of these {len(facts)}; give facts that it knows")
    return found


def _fact(record: Any) -> Fact:
    if not isinstance(record, dict):
        raise InvalidRequestError(f"must be a JSON object, is {type(record).__name__}")
    for field in ("prompt", "object"):
        if field not in record:
            raise InvalidRequestError(f"{field}: is missing")
    return Fact(record["prompt"], record["object"])
