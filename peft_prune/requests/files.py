"""Files of edit requests: JSON, JSONL, CSV, and data sets by their name."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidRequestError, MissingPackageError
from .evaluation_fields import NEIGHBORS, PARAPHRASES
from .formats import read_record, warn_of_unread
from .json_values import read_json
from .question import shown
from .request import EditRequest

FAIL, SKIP = ON_BAD_RECORD = ("fail", "skip")
"""What happens to the whole file where a record is bad."""

LISTS = (*PARAPHRASES, *NEIGHBORS, "generation_prompts")
"""The columns of a CSV file whose cells hold several prompts."""

SEPARATORS = {"none": "", "space": " ", "newline": "\n"}
"""What the column ``separator`` of a CSV file may say in words."""

HUB = "hub:"
"""What stands before the name of a data set that `datasets` loads, as in ``hub:owner/name:split``."""

LIST_SEPARATOR = "|"
"""What stands between the texts of one cell in a CSV file."""


@dataclass(frozen=True)
class BadRecord:
    """A record that gives no request.

    Args:
        record: Its number in the file, from 0.
        reason: What is wrong with it, beginning with the field.
        line: Number of its line from 1, where that is no JSON.
    """

    record: int
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        return f"record {self.record}: {self.reason}" if self.line is None else f"line {self.line}: {self.reason}"


@dataclass(frozen=True)
class LoadedRequests:
    """What a file holds.

    Args:
        requests: The requests, in order.
        records: For each of them the number of the record that states it; one record may state several.
        bad: The records that give none.
        skips: Whether bad records are left out.
    """

    requests: tuple[EditRequest, ...]
    records: tuple[int, ...]
    bad: tuple[BadRecord, ...] = ()
    skips: bool = False

    def without(self, bad: Mapping[int, str]) -> LoadedRequests:
        """The same without the requests at these places, whose records are bad for this reason."""
        kept = [index for index in range(len(self.requests)) if index not in bad]
        more = [BadRecord(self.records[index], reason) for index, reason in bad.items()]
        return replace(
            self,
            requests=tuple(self.requests[index] for index in kept),
            records=tuple(self.records[index] for index in kept),
            bad=tuple(sorted((*self.bad, *more), key=lambda one: one.record)),
        )

    def require(self, path: str | Path) -> None:
        """Raise InvalidRequestError where a record is bad and none may be, or where no request is left."""
        if self.bad and (not self.skips or not self.requests):
            count = len(self.bad) - 1
            more = f" ({count} more {'record is' if count == 1 else 'records are'} bad)" if count else ""
            raise InvalidRequestError(f"{path}: {self.bad[0]}{more}")


def load_requests(path: str | Path, *, limit: int | None = None, on_bad_record: str = FAIL) -> list[EditRequest]:
    """Read edit requests from a JSON list, a JSONL or a CSV file, every record checked before any is returned.

    Args:
        path: File whose records have one of the forms of :meth:`EditRequest.from_record`. A column of a CSV file is a
            field that holds text or prompts; several prompts in a cell stand with ``|`` between them. Or
            ``hub:owner/name:split``, a data set of the Hub (or of a local folder) with such records.
        limit: Return the first ``limit`` requests only; the rest is still checked.
        on_bad_record: "fail" raises where a record is malformed; "skip" leaves it out, and one warning lists all that
            are left out with their reasons.

    Raises:
        InvalidRequestError: The file is missing, unreadable or empty, or a record is malformed (which, and which
            field), or all are.
    """
    found = read_requests(path, limit=limit, on_bad_record=on_bad_record)
    if found.bad:
        listed = "; ".join(map(str, found.bad))
        count = "1 bad record is" if len(found.bad) == 1 else f"{len(found.bad)} bad records are"
        warnings.warn(f"{path}: {count} left out: {listed}")
    return list(found.requests)


def read_requests(path: str | Path, *, limit: int | None = None, on_bad_record: str = FAIL) -> LoadedRequests:
    """As :func:`load_requests`, with the number of each request's record and the records that are left out.

    Raises:
        InvalidRequestError: As :func:`load_requests`.
    """
    require_on_bad_record(on_bad_record)
    if limit is not None and limit < 1:
        raise InvalidRequestError(f"limit: {limit} must be at least 1")
    entries = _csv_records(Path(path)) if Path(path).suffix.lower() == ".csv" else _entries(path)
    requests: list[tuple[int, EditRequest]] = []
    bad: list[BadRecord] = []
    names: dict[tuple[str, ...], None] = {}
    for index, record in enumerate(entries):
        if isinstance(record, _BadLine):
            bad.append(BadRecord(index, record.reason, record.line))
            continue
        try:
            reading = read_record(record)
            requests += [(index, EditRequest(**own)) for own in reading.requests]
            names[reading.names] = None
        except InvalidRequestError as error:
            bad.append(BadRecord(index, str(error)))
    records, stated = [index for index, _ in requests[:limit]], [one for _, one in requests[:limit]]
    found = LoadedRequests(tuple(stated), tuple(records), tuple(bad), on_bad_record == SKIP)
    found.require(path)
    warn_of_unread(names)
    return found


def require_on_bad_record(value: str) -> None:
    """Raise InvalidRequestError where it is not said what happens to a bad record."""
    if value not in ON_BAD_RECORD:
        raise InvalidRequestError(f"on_bad_record: {shown(value)} is not one of {', '.join(ON_BAD_RECORD)}")


@dataclass(frozen=True)
class _BadLine:
    """A line that is no JSON, or a row without a cell for each column."""

    line: int | None
    reason: str


def read_records(path: str | Path) -> list[Any]:
    """Read a non-empty JSON list, or one JSON value per line where the file name ends in ``.jsonl``.

    ``hub:owner/name:split`` names a data set that the `datasets` library loads; the split may be left out where there
    is only one. Fields that are null there are left out.

    Raises:
        InvalidRequestError: The file or data set is missing, unreadable, not of that form, or empty.
        MissingPackageError: `datasets` is needed and not installed.
    """
    records = _entries(path)
    for record in records:
        if isinstance(record, _BadLine):
            raise InvalidRequestError(f"{path}: line {record.line}: {record.reason}")
    return records


def _entries(path: str | Path) -> list[Any]:
    """Records of a file or a data set; a line that is no JSON is one as well."""
    if str(path).startswith(HUB):
        return _hub_records(str(path))
    path = Path(path)
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        records: Any = list(_json_lines(text))
    else:
        try:
            records = read_json(text)
        except ValueError as error:
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
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InvalidRequestError(f"{path}: cannot be read: {reason}") from None


def _hub_records(source: str) -> list[Any]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingPackageError("datasets is not installed; pip install 'peft-prune[evaluation]'") from None
    name, _, split = source.removeprefix(HUB).partition(":")
    if not name.strip():
        raise InvalidRequestError(f"{source!r}: must have the form {HUB}owner/name or {HUB}owner/name:split")
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
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        names = rows.fieldnames or ()
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InvalidRequestError(f"{path}: column {twice[0]!r} is there {names.count(twice[0])} times")
        records = [_csv_record(row) for row in rows]
    except csv.Error as error:
        raise InvalidRequestError(f"{path}: is not valid CSV: {error}") from None
    if not records:
        raise InvalidRequestError(f"{path}: holds no records")
    return records


def _csv_record(row: dict[Any, Any]) -> Any:
    if None in row or None in row.values():
        return _BadLine(None, "has another number of cells than the header")
    filled = {name: cell for name, cell in row.items() if cell.strip()}
    parts = {name: filled[name].split(LIST_SEPARATOR) for name in LISTS if name in filled}
    # an empty cell says nothing, so what cannot be seen is named
    own = {"separator": SEPARATORS.get(row["separator"].strip(), row["separator"])} if row.get("separator") else {}
    return filled | {name: [part.strip() for part in cells] for name, cells in parts.items()} | own


def _json_lines(text: str) -> Iterator[Any]:
    # not splitlines(): a string may hold separators of lines other than this one
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield read_json(line)
            except ValueError as error:
                where = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                yield _BadLine(number, f"is not valid JSON: {where}")
