"""The forms in which data sets write edit requests, each turned into the fields of one."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidRequestError
from .evaluation_fields import READ, portability_questions, prompt_lists, texts_in, unrelated_questions
from .json_values import require_sound
from .question import require_text, shown
from .ripple import ripple_fact
from .subject import template

PROMPT_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "generation_prompts")
"""The fields of a request that hold a list of prompts."""

TEXTS = ("prompt", "subject", "target_new", "target_true", "case_id", "relation_id", "separator", "question", "ask")
"""Those that hold one text."""

_NEEDED = {
    "prompt": ("prompt", "src", "text"),
    "subject": ("subject", "concept"),
    "target_new": ("target_new", "alt", "labels", "target"),
}
"""What every record must have, by the names under which data sets write it."""

_KNOWN = frozenset((*TEXTS, *(name for names in _NEEDED.values() for name in names), "ground_truth", "answers", *READ))

_MEASURES = re.compile(
    r"prompt|portab|locality|^loc|r[ae]phras|neighbo|specif|generali|hop|question|quer|answer|truth",
    re.IGNORECASE,
)
"""Names of fields by which something is measured."""

_LEFT_ALONE = ("attribute_prompts", "prompt_full", "answer", "answer_alias", "single_hops")
"""Such names of published data sets that tell nothing of an edit: of the old fact, or not used there either."""


@dataclass(frozen=True)
class Reading:
    """What a record says.

    Args:
        requests: The fields of each request that it states.
        names: Of all its fields, in order.
    """

    requests: tuple[dict[str, Any], ...]
    names: tuple[str, ...]


def warn_of_unread(records: Iterable[Sequence[str]]) -> None:
    """One warning that names what is not read of these records' fields, if it seems to be meant to be."""
    found = list(dict.fromkeys(name for names in records for name in _unread(names)))
    if found:
        warnings.warn(f"records: these fields are not read, so nothing is measured by them: {', '.join(found)}")


def read_record(record: Mapping[str, Any]) -> Reading:
    """The requests of a record in any of the forms that `EditRequest.from_record` lists.

    Raises:
        InvalidRequestError: The record is not a mapping, lacks a field, or a field is malformed.
    """
    if not isinstance(record, Mapping):
        raise InvalidRequestError(f"must be a JSON object, is {type(record).__name__}")
    require_sound(record)
    rewrites = _rewrites(record)
    requests: list[dict[str, Any]] = []
    for place, rewrite in rewrites:
        try:
            requests.append(_fact(rewrite))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{place}{error}") from None
    for request, (_, rewrite) in zip(requests, rewrites, strict=True):
        # what a record asks on the whole holds once all of its facts are edited
        request |= _measures(rewrite if request is not requests[-1] else {**record, **rewrite})
        request["case_id"] = record.get("case_id")
        for name in ("separator", "ask"):
            request[name] = rewrite.get(name, record.get(name))
        # of a fact within a record, data sets give the question as another wording to measure by
        request["question"] = record.get("question") if len(rewrites) == 1 else None
        if rewrite is not record and isinstance(rewrite.get("question"), str):
            request["paraphrase_prompts"] += (rewrite["question"],)
    inner = [name for _, rewrite in rewrites if rewrite is not record for name in rewrite if name != "question"]
    return Reading(tuple(requests), tuple(dict.fromkeys(map(str, (*record, *inner)))))


def _rewrites(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The parts of a record that state a fact each, and what stands before the names of their fields in a message."""
    if record.get("requested_rewrite") is not None:
        own = record["requested_rewrite"]
        given = own if isinstance(own, (list, tuple)) else [own]
        if not given:
            raise InvalidRequestError("requested_rewrite: holds no fact")
        for one in given:
            if not isinstance(one, Mapping):
                raise InvalidRequestError(f"requested_rewrite: must be a JSON object, is {type(one).__name__}")
        return [("" if own is not given else f"requested_rewrite[{i}].", one) for i, one in enumerate(given)]
    if isinstance(record.get("edit"), Mapping) and not {"prompt", "src"} & set(record):
        return [("edit.", ripple_fact(record))]
    return [("", record)]


def _fact(rewrite: Mapping[str, Any]) -> dict[str, Any]:
    prompt_field, prompt = _needed(rewrite, "prompt")
    require_text(prompt_field, prompt)
    subject = _subject(rewrite, prompt)
    if prompt_field == "src" and rewrite.get("alt") is None and rewrite.get("target_new") is None:
        target: Any = texts_in(_required(rewrite, "answers"), "answers")[0]
        true = None
    else:
        target_field, target = _needed(rewrite, "target_new")
        target, true = _target(target, target_field), _true_target(rewrite)
    return {
        "prompt": template(prompt, subject, prompt_field),
        "subject": subject,
        "target_new": target,
        "target_true": None if _is_same(target, true) else true,
        "relation_id": rewrite.get("relation_id"),
    }


def _measures(record: Mapping[str, Any]) -> dict[str, Any]:
    questions = {"portability": portability_questions(record), "unrelated": unrelated_questions(record)}
    return {**prompt_lists(record), **questions}


def _needed(record: Mapping[str, Any], field: str) -> tuple[str, Any]:
    """The name under which a needed field is there, and its value."""
    for name in _NEEDED[field]:
        if record.get(name) is not None:
            return name, record[name]
    close = difflib.get_close_matches(field, [str(name) for name in record if name not in _KNOWN], n=1, cutoff=0.65)
    raise InvalidRequestError(
        f"{field}: is missing"
        + (f", and {shown(close[0])[1:-1]} is no field of a request; {field} is" if close else "")
    )


def _subject(record: Mapping[str, Any], prompt: str) -> Any:
    """The subject; None for a record that has no field of that name, nor one that nearly is it.

    Raises:
        InvalidRequestError: The prompt holds the place of one, or a field seems to be meant.
    """
    try:
        return _needed(record, "subject")[1]
    except InvalidRequestError as error:
        if "{}" in prompt or str(error) != "subject: is missing":
            raise
    return None


def _required(record: Mapping[str, Any], field: str) -> Any:
    if record.get(field) is None:
        raise InvalidRequestError(f"{field}: is missing")
    return record[field]


def _true_target(rewrite: Mapping[str, Any]) -> Any:
    if rewrite.get("target_true") is not None:
        return _target(rewrite["target_true"], "target_true")
    if rewrite.get("ground_truth"):
        return texts_in(rewrite["ground_truth"], "ground_truth")[0]
    return texts_in(rewrite["answers"], "answers")[0] if "src" in rewrite and "answers" in rewrite else None


def _target(value: Any, field: str) -> Any:
    if isinstance(value, Mapping):
        if "str" not in value:
            raise InvalidRequestError(f"{field}.str: is missing")
        return value["str"]
    return value


def _is_same(new: Any, true: Any) -> bool:
    """Whether both targets are one: then neither could be the more probable one."""
    return isinstance(new, str) and isinstance(true, str) and new.split() == true.split()


def _unread(names: Sequence[str]) -> list[str]:
    """Names by which something should be measured, and those that are nearly the name of a field that is missing."""
    found = []
    for name in names:
        if name in _KNOWN or name in _LEFT_ALONE or name.endswith("_id") or name == "requested_rewrite":
            continue
        close = [one for one in difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.85) if one not in names]
        if close:
            found.append(f"{shown(name)[1:-1]} (did you mean {close[0]}?)")
        elif _MEASURES.search(name):
            found.append(shown(name)[1:-1])
    return found
