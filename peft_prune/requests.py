"""Edit requests: one validated record type and the reader of request files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InvalidRequestError


@dataclass(frozen=True)
class EditRequest:
    """One fact to overwrite, in the terms of CounterFact (Meng et al. 2022, section 3.4).

    Args:
        prompt: Template with exactly one ``{}`` where the subject stands, such as ``"{} is developed by"``.
        subject: The entity that the fact is about.
        target_new: The continuation that the edited model must give, without a leading space.
        target_true: The continuation that the base model gives, where known; needed by the locality metric.
        paraphrase_prompts: Other wordings of the same fact, complete with their subject (generalization).
        neighborhood_prompts: Prompts on other subjects that share ``target_true`` (locality).
        case_id: Identifier of the record in its data set, for reports.
        relation_id: Identifier of the relation (Wikidata's, in CounterFact), for reports.

    Raises:
        InvalidRequestError: A field has the wrong type, is empty, or the template does not hold one ``{}``.
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    case_id: int | str | None = None
    relation_id: str | None = None

    def __post_init__(self) -> None:
        for field in ("prompt", "subject", "target_new"):
            _require_text(field, getattr(self, field))
        if self.target_true is not None:
            _require_text("target_true", self.target_true)
        if self.prompt.count("{}") != 1:
            raise InvalidRequestError(
                f"prompt: {self.prompt!r} must hold the subject's place '{{}}' exactly once, "
                f"it holds it {self.prompt.count('{}')} times"
            )
        for field in ("paraphrase_prompts", "neighborhood_prompts"):
            value = getattr(self, field)
            if isinstance(value, str) or not all(isinstance(text, str) and text.strip() for text in value):
                raise InvalidRequestError(f"{field}: {value!r} must be a list of non-empty strings")
            object.__setattr__(self, field, tuple(value))

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EditRequest:
        """Build a request from a CounterFact record or from a flat mapping with this class's field names.

        Raises:
            InvalidRequestError: The record is not a mapping, lacks a field, or a field is malformed.
        """
        if not isinstance(record, Mapping):
            raise InvalidRequestError(f"must be a JSON object, is {type(record).__name__}")
        rewrite = record.get("requested_rewrite", record)
        if not isinstance(rewrite, Mapping):
            raise InvalidRequestError(f"requested_rewrite: must be a JSON object, is {type(rewrite).__name__}")
        missing = [field for field in ("prompt", "subject", "target_new") if field not in rewrite]
        if missing:
            raise InvalidRequestError(f"{missing[0]}: is missing")
        return cls(
            prompt=rewrite["prompt"],
            subject=rewrite["subject"],
            target_new=_target(rewrite["target_new"], "target_new"),
            target_true=None if rewrite.get("target_true") is None else _target(rewrite["target_true"], "target_true"),
            paraphrase_prompts=_texts(record, "paraphrase_prompts"),
            neighborhood_prompts=_texts(record, "neighborhood_prompts"),
            case_id=record.get("case_id"),
            relation_id=rewrite.get("relation_id"),
        )


def load_requests(path: str | Path, *, limit: int | None = None) -> list[EditRequest]:
    """Read edit requests from a JSON list or a JSONL file, every record checked before any is returned.

    Args:
        path: File whose records are CounterFact records or flat objects (``prompt``, ``subject``, ``target_new`` ...).
        limit: Return the first ``limit`` records only; the rest is still checked.

    Raises:
        InvalidRequestError: The file is missing, unreadable, empty, or a record is malformed (which, and which field).
    """
    if limit is not None and limit < 1:
        raise InvalidRequestError(f"limit: {limit} must be at least 1")
    records = read_records(path)
    requests = []
    for index, record in enumerate(records):
        try:
            requests.append(EditRequest.from_record(record))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path}: record {index}: {error}") from None
    return requests[:limit]


def read_records(path: str | Path) -> list[Any]:
    """Read a non-empty JSON list, or one JSON value per line where the file name ends in ``.jsonl``.

    Raises:
        InvalidRequestError: The file is missing, unreadable, not of that form, or empty.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: cannot be read: {error}") from None
    try:
        records = list(_json_lines(text)) if path.suffix == ".jsonl" else json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(records, list):
        raise InvalidRequestError(f"{path}: must hold a JSON list, holds a {type(records).__name__}")
    if not records:
        raise InvalidRequestError(f"{path}: holds no records")
    return records


def _json_lines(text: str) -> Iterable[Any]:
    return (json.loads(line) for line in text.splitlines() if line.strip())


def _require_text(field: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{field}: {value!r} must be a string, is {type(value).__name__}")
    if not value.strip():
        raise InvalidRequestError(f"{field}: {value!r} is empty")


def _target(value: Any, field: str) -> Any:
    if isinstance(value, Mapping):
        if "str" not in value:
            raise InvalidRequestError(f"{field}.str: is missing")
        return value["str"]
    return value


def _texts(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = record.get(field) or ()
    if not isinstance(value, (list, tuple)):
        raise InvalidRequestError(f"{field}: {value!r} must be a list of strings")
    return tuple(value)
