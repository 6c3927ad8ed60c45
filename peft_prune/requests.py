"""Edit requests: one validated record type and the reader of request files."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InvalidRequestError, MissingPackageError

HUB = "hub:"
"""What stands before the name of a data set that `datasets` loads, as in ``hub:owner/name:split``."""

LIST_SEPARATOR = "|"
"""What stands between the texts of one cell in a CSV file."""

_KNOWEDIT = ("ground_truth", "rephrase_prompt", "concept")
_PROMPT_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "generation_prompts")
_NATURAL_QUESTIONS_MARK = "nq question: "


@dataclass(frozen=True)
class Question:
    """A prompt with every answer that counts as right.

    Raises:
        InvalidRequestError: The prompt or an answer is no text or empty, or there is no answer.
    """

    prompt: str
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_text("prompt", self.prompt)
        if isinstance(self.answers, str) or not self.answers:
            raise InvalidRequestError(f"answers: {self.answers!r} must be a non-empty list of strings")
        for answer in self.answers:
            _require_text("answers", answer)
        object.__setattr__(self, "answers", tuple(self.answers))


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
        generation_prompts: Beginnings of texts about the subject, for fluency.
        portability: Questions whose answers follow from the new fact (Zhang et al. 2024, arXiv 2401.01286).
        unrelated: Questions that the edit must leave alone and that need not share ``target_true``.
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
    generation_prompts: tuple[str, ...] = ()
    portability: tuple[Question, ...] = ()
    unrelated: tuple[Question, ...] = ()
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
        for field in _PROMPT_LISTS:
            value = getattr(self, field)
            if isinstance(value, str) or not all(isinstance(text, str) and text.strip() for text in value):
                raise InvalidRequestError(f"{field}: {value!r} must be a list of non-empty strings")
            object.__setattr__(self, field, tuple(value))
        for field in ("portability", "unrelated"):
            object.__setattr__(self, field, tuple(_question(field, one) for one in getattr(self, field)))
        if self.case_id is not None and (isinstance(self.case_id, bool) or not isinstance(self.case_id, (int, str))):
            raise InvalidRequestError(f"case_id: {self.case_id!r} must be a whole number or a string")
        if self.relation_id is not None:
            _require_text("relation_id", self.relation_id)

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EditRequest:
        """Build a request from a record of one of the forms below; which one, its fields tell.

        * CounterFact (Meng et al. 2022): ``requested_rewrite`` and lists of prompts.
        * ZsRE (Mitchell et al. 2022): ``src``, ``rephrase``, ``alt``, ``answers``, ``loc``, ``loc_ans``. The new target
          is ``alt``, and the first answer the true one; without ``alt`` the first answer is the new target.
        * KnowEdit (Zhang et al. 2024): ``portability`` and ``locality`` as objects that hold questions by their kind,
          or ``ground_truth``, ``rephrase_prompt`` or ``concept``.
        * Flat: this class's own field names; other fields are left alone, unless their name is nearly one of these.

        Where a prompt holds no ``{}``, the last place in which it names the subject is taken. A true target that is the
        new one tells nothing and is left out.

        Raises:
            InvalidRequestError: The record is not a mapping, lacks a field, or a field is malformed.
        """
        if not isinstance(record, Mapping):
            raise InvalidRequestError(f"must be a JSON object, is {type(record).__name__}")
        if "src" in record:
            return cls(**_told_apart(_zsre(record)))
        if any(name in record for name in _KNOWEDIT) or any(
            isinstance(record.get(name), Mapping) for name in ("locality", "portability")
        ):
            return cls(**_told_apart(_knowedit(record)))
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
        fields |= {name: _texts(record, name) for name in (*_PROMPT_LISTS, "portability", "unrelated")}
        return cls(**_told_apart(fields))


def load_requests(path: str | Path, *, limit: int | None = None) -> list[EditRequest]:
    """Read edit requests from a JSON list, a JSONL or a CSV file, every record checked before any is returned.

    Args:
        path: File whose records have one of the forms of :meth:`EditRequest.from_record`. The columns of a CSV file are
            the flat form's fields that hold text; several prompts in a cell stand with ``|`` between them. Or
            ``hub:owner/name:split``, a data set of the Hub (or of a local folder) with such records.
        limit: Return the first ``limit`` records only; the rest is still checked.

    Raises:
        InvalidRequestError: The file is missing, unreadable, empty, or a record is malformed (which, and which field).
    """
    if limit is not None and limit < 1:
        raise InvalidRequestError(f"limit: {limit} must be at least 1")
    records = _csv_records(Path(path)) if Path(path).suffix.lower() == ".csv" else read_records(path)
    requests = []
    for index, record in enumerate(records):
        try:
            requests.append(EditRequest.from_record(record))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path}: record {index}: {error}") from None
    return requests[:limit]


def read_records(path: str | Path) -> list[Any]:
    """Read a non-empty JSON list, or one JSON value per line where the file name ends in ``.jsonl``.

    ``hub:owner/name:split`` names a data set that the `datasets` library loads; the split may be left out where there
    is only one. Fields that are null there are left out.

    Raises:
        InvalidRequestError: The file or data set is missing, unreadable, not of that form, or empty.
        MissingPackageError: `datasets` is needed and not installed.
    """
    if str(path).startswith(HUB):
        return _hub_records(str(path))
    path = Path(path)
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        records: Any = list(_json_lines(path, text))
    else:
        try:
            records = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidRequestError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(records, list):
        raise InvalidRequestError(f"{path}: must hold a JSON list, holds a {type(records).__name__}")
    if not records:
        raise InvalidRequestError(f"{path}: holds no records")
    return records


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; one that a spreadsheet or an editor wrote may begin with a byte order mark.

    Raises:
        InvalidRequestError: It is missing, unreadable or no such text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: cannot be read: {error}") from None


def _hub_records(source: str) -> list[Any]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingPackageError("datasets is not installed; install peft-prune[evaluation]") from None
    name, _, split = source.removeprefix(HUB).partition(":")
    try:
        found = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InvalidRequestError(f"{source}: cannot be loaded: {' '.join(str(error).split())}") from None
    splits = list(found)
    if (split and split not in splits) or (not split and len(splits) > 1):
        raise InvalidRequestError(f"{source}: split {split!r} is not one of {', '.join(splits)}")
    records = [{key: value for key, value in row.items() if value is not None} for row in found[split or splits[0]]]
    if not records:
        raise InvalidRequestError(f"{source}: holds no records")
    return records


def _csv_records(path: Path) -> list[dict[str, Any]]:
    text = read_text(path)
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    texts, lists = ("prompt", "subject", "target_new", "target_true", "case_id", "relation_id"), _PROMPT_LISTS
    try:
        names = rows.fieldnames or ()
        unknown = [name for name in names if name not in (*texts, *lists)]
        if unknown:
            raise InvalidRequestError(f"{path}: column {unknown[0]!r} is not one of {', '.join((*texts, *lists))}")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InvalidRequestError(f"{path}: column {twice[0]!r} is there {names.count(twice[0])} times")
        records = []
        for index, row in enumerate(rows):
            if None in row or None in row.values():
                raise InvalidRequestError(f"{path}: record {index}: has another number of cells than the header")
            filled = {name: cell for name, cell in row.items() if cell.strip()}
            parts = {name: filled[name].split(LIST_SEPARATOR) for name in lists if name in filled}
            records.append(filled | {name: [part.strip() for part in own] for name, own in parts.items()})
    except csv.Error as error:
        raise InvalidRequestError(f"{path}: is not valid CSV: {error}") from None
    if not records:
        raise InvalidRequestError(f"{path}: holds no records")
    return records


def _told_apart(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without a true target that is the new one: neither could be the more probable one."""
    new, true = fields["target_new"], fields["target_true"]
    same = isinstance(new, str) and isinstance(true, str) and new.split() == true.split()
    return {**fields, "target_true": None} if same else fields


def _refuse_misspelt(record: Mapping[str, Any]) -> None:
    known = (*EditRequest.__dataclass_fields__, "requested_rewrite")
    for name in record:
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.65) if name not in known else []
        if close:
            raise InvalidRequestError(f"{name}: is no field of a request; {close[0]} is")


def _zsre(record: Mapping[str, Any]) -> dict[str, Any]:
    _require_fields(record, "subject", "answers")
    _require_text("src", record["src"])
    if record.get("rephrase") is not None:
        _require_text("rephrase", record["rephrase"])
    answers = _answers(record["answers"], "answers")
    alternative = record.get("alt")
    question = record.get("loc")
    unrelated: tuple[Question, ...] = ()
    if question is not None:
        _require_text("loc", question)
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


def _question(field: str, value: Any) -> Question:
    if isinstance(value, Question):
        return value
    if not isinstance(value, Mapping) or set(value) != {"prompt", "answers"}:
        raise InvalidRequestError(f"{field}: {value!r} must be an object with prompt and answers")
    try:
        return Question(**value)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{field}: {error}") from None


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


def _json_lines(path: Path, text: str) -> Iterator[Any]:
    # not splitlines(): a string may hold separators of lines other than this one
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InvalidRequestError(f"{path}: line {number}: is not valid JSON: {error}") from None


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


def _texts(record: Mapping[str, Any], field: str) -> tuple[Any, ...]:
    value = record.get(field) or ()
    if not isinstance(value, (list, tuple)):
        raise InvalidRequestError(f"{field}: {value!r} must be a list")
    return tuple(value)
