"""JSON from elsewhere: what the standard's readers let pass, and an untrusted file must not bring in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequestError
from .question import shown

DEEPEST = 32
"""How deep a record may be nested; the forms that are read need six levels."""

_LONGEST_NUMBER = 400


class Repeated(dict[str, Any]):
    """An object that names fields twice; readers of JSON keep the last one and say nothing."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.names = [name for name in dict.fromkeys(names) if names.count(name) > 1]


def read_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is no JSON, or nested too deep to be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def require_sound(record: Mapping[str, Any]) -> None:
    """Raise InvalidRequestError where a record is nested deeper than `DEEPEST`, or names a field twice."""
    waiting: list[tuple[str, Any, int]] = [("", record, 0)]
    while waiting:
        field, value, depth = waiting.pop()
        if depth > DEEPEST:
            raise InvalidRequestError(f"{shown(field)[1:-1]}: is nested deeper than {DEEPEST} levels")
        if isinstance(value, Repeated):
            raise InvalidRequestError(f"{shown(value.names[0])[1:-1]}: is there twice")
        if isinstance(value, Mapping):
            waiting += [(field or str(name), one, depth + 1) for name, one in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(field, one, depth + 1) for one in value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else Repeated(pairs)


def _whole(digits: str) -> int | float:
    # Python refuses to read numbers of more than some thousand digits
    return int(digits) if len(digits) <= _LONGEST_NUMBER else float(digits)
