"""The requests that a command works on, and what it says of records that give none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidRequestError
from ..requests import EditRequest, LoadedRequests, load_requests, read_requests
from .plain import say

OnBadRecord = Annotated[
    str,
    typer.Option(
        help="What to do where a record is malformed: fail, before any work, or skip it, listed with its reason."
    ),
]

Check = Callable[[Any, Any, EditRequest], None]
"""Raises InvalidRequestError where a model, with its tokenizer, cannot take a request."""


def requested(path: Path | str, limit: int | None, on_bad_record: str) -> LoadedRequests:
    """The requests of a file; records that are left out are listed on standard error.

    Raises:
        InvalidRequestError: A record is malformed and none may be, or all are.
    """
    found = read_requests(path, limit=limit, on_bad_record=on_bad_record)
    _list(path, [str(one) for one in found.bad])
    return found


def fitting(path: Path | str, found: LoadedRequests, model: Any, tokenizer: Any, check: Check) -> LoadedRequests:
    """Those of the requests that a model can take; the others are listed, or are an error.

    Raises:
        InvalidRequestError: The model cannot take one and it may not be left out, or none is left.
    """
    bad: dict[int, str] = {}
    for index, request in enumerate(found.requests):
        try:
            check(model, tokenizer, request)
        except InvalidRequestError as error:
            bad[index] = str(error)
    left = found.without(bad)
    if bad:
        left.require(path)
        _list(path, [f"record {found.records[index]}: {reason}" for index, reason in bad.items()])
    return left


def measurable(model: Any, tokenizer: Any, request: EditRequest) -> None:
    """Raise InvalidRequestError where a request cannot be edited into a model, or a prompt of it cannot be asked."""
    from ..evaluation import require_answerable
    from ..session.verification import require_editable

    require_editable(model, tokenizer, request)
    require_answerable(model, tokenizer, request)


def bad_records(found: LoadedRequests) -> dict[str, Any]:
    """The records that were left out, ready for JSON; nothing where none may be."""
    return {"bad_records": [{"record": one.record, "reason": one.reason} for one in found.bad]} if found.skips else {}


def edits_asked(requests: Path | None, history: Path | None) -> list[EditRequest]:
    """The edits of a file of requests, or those that stand in a history; none where neither is given.

    Raises:
        ValueError: Both are given.
    """
    from ..session import History

    if requests is not None and history is not None:
        raise ValueError("requests: give --requests or --history, not both")
    if requests is not None:
        return load_requests(requests)
    if history is None:
        return []
    with History.read(history) as opened:
        return [edit.request for edit in opened.edits(standing=True) if edit.request is not None]


def lost_of(asked: Sequence[EditRequest], places: Sequence[int]) -> list[dict[str, Any]]:
    """The edits at these places, ready for JSON."""
    return [{"index": place, "prompt": asked[place].text, "target": asked[place].target_new} for place in places]


def tell_lost(lost: Sequence[dict[str, Any]] | None, asked: int, where: str) -> None:
    """Say which of the edits are lost; nothing where that was not measured."""
    if lost is None:
        return
    say(f"  {len(lost)} of {asked} edits are lost {where}" + (":" if lost else ""))
    for edit in lost:
        say(f"    {edit['prompt']} → {edit['target']}")


def _list(path: Path | str, lines: list[str]) -> None:
    if lines:
        say(f"{path}: {len(lines)} {'record is' if len(lines) == 1 else 'records are'} left out", err=True)
        for line in lines:
            say(f"  {line}", err=True)
