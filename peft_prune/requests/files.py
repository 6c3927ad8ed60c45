"""Files of edit requests: JSON, JSONL, CSV, and data sets by their name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidRequestError, MissingPackageError
from .formats import PROMPT_LISTS
from .request import EditRequest

HUB = "hub:"
"""What stands before the name of a data set that `datasets` loads, as in ``hub:owner/name:split``."""

LIST_SEPARATOR = "|"
"""What stands between the texts of one cell in a CSV file."""


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
    text = read_text(path)
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    texts, lists = ("prompt", "subject", "target_new", "target_true", "case_id", "relation_id"), PROMPT_LISTS
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


def _json_lines(path: Path, text: str) -> Iterator[Any]:
    # not splitlines(): a string may hold separators of lines other than this one
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InvalidRequestError(f"{path}: line {number}: is not valid JSON: {error}") from None
