"""The forms in which data sets write edit requests, each turned into the fields of one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequestError
from .question import Question, require_text

FIELDS = (
    "prompt",
    "subject",
    "target_new",
    "target_true",
    "paraphrase_prompts",
    "neighborhood_prompts",
    "generation_prompts",
    "portability",
    "unrelated",
    "case_id",
    "relation_id",
)
"""The fields of a request, which are those of the flat form."""

PROMPT_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "generation_prompts")
"""Those of them that hold a list of prompts."""

_KNOWEDIT = ("ground_truth", "rephrase_prompt", "concept")
_NATURAL_QUESTIONS_MARK = "nq question: "


def request_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request from a record in any of the forms that `EditRequest.from_record` lists.

    Raises:
        InvalidRequestError: The record is not a mapping, lacks a field, or a field is malformed.
    """
    if not isinstance(record, Mapping):
        raise InvalidRequestError(f"must be a JSON object, is {type(record).__name__}")
    if "src" in record:
        return _told_apart(_zsre(record))
    if any(name in record for name in _KNOWEDIT) or any(
        isinstance(record.get(name), Mapping) for name in ("locality", "portability")
    ):
        return _told_apart(_knowedit(record))
    rewrite = record.get("requested_rewrite", record)
    if not isinstance(rewrite, Mapping):
        raise InvalidRequestError(f"requested_rewrite: must be a JSON object, is {type(rewrite).__name__}")
    _require_fields(rewrite, "prompt", "subject", "target_new")
    _refuse_misspelt(record)
    if rewrite is not record:
        _refuse_misspelt(rewrite)
    true = rewrite.get("target_true")
    fields: dict[str, Any] = {
        "prompt": _template(rewrite["prompt"], rewrite["subject"], "prompt"),
        "subject": rewrite["subject"],
        "target_new": _target(rewrite["target_new"], "target_new"),
        "target_true": None if true is None else _target(true, "target_true"),
        "case_id": record.get("case_id"),
        "relation_id": rewrite.get("relation_id"),
    }
    fields |= {name: _texts(record, name) for name in (*PROMPT_LISTS, "portability", "unrelated")}
    return _told_apart(fields)


def _told_apart(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without a true target that is the new one: neither could be the more probable one."""
    new, true = fields["target_new"], fields["target_true"]
    same = isinstance(new, str) and isinstance(true, str) and new.split() == true.split()
    return {**fields, "target_true": None} if same else fields


def _refuse_misspelt(record: Mapping[str, Any]) -> None:
    known = (*FIELDS, "requested_rewrite")
    for name in record:
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.65) if name not in known else []
        if close:
            raise InvalidRequestError(f"{name}: is no field of a request; {close[0]} is")


def _zsre(record: Mapping[str, Any]) -> dict[str, Any]:
    _require_fields(record, "subject", "answers")
    require_text("src", record["src"])
    if record.get("rephrase") is not None:
        require_text("rephrase", record["rephrase"])
    answers = _answers(record["answers"], "answers")
    alternative = record.get("alt")
    question = record.get("loc")
    unrelated: tuple[Question, ...] = ()
    if question is not None:
        require_text("loc", question)
        _require_fields(record, "loc_ans")
        loc_answers = _answers(record["loc_ans"], "loc_ans")
        unrelated = (Question(question.removeprefix(_NATURAL_QUESTIONS_MARK), loc_answers),)
    return {
        "prompt": _template(record["src"], record["subject"], "src"),
        "subject": record["subject"],
        "target_new": answers[0] if alternative is None else alternative,
        "target_true": None if alternative is None else answers[0],
        "paraphrase_prompts": () if record.get("rephrase") is None else (record["rephrase"],),
        "unrelated": unrelated,
        "case_id": record.get("case_id"),
    }


def _knowedit(record: Mapping[str, Any]) -> dict[str, Any]:
    names = {"prompt": "text", "subject": "concept", "target_new": "labels"}
    own = {name: record.get(name, record.get(other)) for name, other in names.items()}
    _require_fields({name: value for name, value in own.items() if value is not None}, *names)
    true = None if record.get("ground_truth") is None else _answers(record["ground_truth"], "ground_truth")[0]
    rephrased = record.get("rephrase_prompt", record.get("rephrase"))
    return {
        "prompt": _template(own["prompt"], own["subject"], "prompt"),
        "subject": own["subject"],
        "target_new": own["target_new"],
        "target_true": None if true == own["target_new"] else true,
        "paraphrase_prompts": () if rephrased is None else _flat(rephrased),
        "portability": _questions(record, "portability"),
        "unrelated": _questions(record, "locality"),
        "case_id": record.get("case_id"),
    }


def _questions(record: Mapping[str, Any], field: str) -> tuple[Question, ...]:
    kinds = record.get(field) or {}
    if not isinstance(kinds, Mapping):
        raise InvalidRequestError(f"{field}: {kinds!r} must be an object that holds lists of questions by kind")
    found = []
    for kind, questions in kinds.items():
        if not isinstance(questions, (list, tuple, type(None))):
            raise InvalidRequestError(f"{field}.{kind}: {questions!r} must be a list of questions")
        for index, one in enumerate(questions or ()):
            where = f"{field}.{kind}[{index}]"
            if not isinstance(one, Mapping):
                raise InvalidRequestError(f"{where}: {one!r} must be an object with prompt and ground_truth")
            prompts = _flat(one.get("prompt"))
            if not prompts or not isinstance(prompts[0], str) or not prompts[0].strip():
                raise InvalidRequestError(f"{where}.prompt: {one.get('prompt')!r} must be a non-empty string")
            found.append(Question(prompts[0], _answers(one.get("ground_truth"), f"{where}.ground_truth")))
    return tuple(found)


def _answers(value: Any, field: str) -> tuple[str, ...]:
    """All texts in ``value``, a text or lists of lists of texts, without empty and repeated ones."""
    texts = _flat(value)
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequestError(f"{field}: {value!r} must be a string or a list of strings")
    answers = tuple(dict.fromkeys(text for text in texts if text.strip()))
    if not answers:
        raise InvalidRequestError(f"{field}: {value!r} holds no answer")
    return answers


def _flat(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(part for one in value for part in _flat(one))
    return () if value is None else (value,)


def _template(prompt: Any, subject: Any, field: str) -> Any:
    """The prompt with ``{}`` in the subject's place; what cannot be a template is left to the record's own check."""
    if not (isinstance(prompt, str) and isinstance(subject, str) and subject.strip()) or "{}" in prompt:
        return prompt
    words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt))
    # within a longer word only where scripts without spaces, or endings, leave no other place
    start = words[-1].start() if words else prompt.rfind(subject)
    if start < 0:
        raise InvalidRequestError(f"{field}: {prompt!r} must hold '{{}}' or name the subject {subject!r}")
    return f"{prompt[:start]}{{}}{prompt[start + len(subject) :]}"


def _require_fields(record: Mapping[str, Any], *fields: str) -> None:
    missing = [field for field in fields if field not in record]
    if missing:
        raise InvalidRequestError(f"{missing[0]}: is missing")


def _target(value: Any, field: str) -> Any:
    if isinstance(value, Mapping):
        if "str" not in value:
            raise InvalidRequestError(f"{field}.str: is missing")
        return value["str"]
    return value


def _texts(record: Mapping[str, Any], field: str) -> tuple[Any, ...]:
    value = record.get(field) or ()
    if not isinstance(value, (list, tuple)):
        raise InvalidRequestError(f"{field}: {value!r} must be a list")
    return tuple(value)
