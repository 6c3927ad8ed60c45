"""A prompt with every answer that counts as right, and the checks of a field that holds text."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..characters import forbidden_character
from ..errors import InvalidRequestError


@dataclass(frozen=True)
class Question:
    """A prompt with every answer that counts as right.

    Raises:
        InvalidRequestError: The prompt or an answer is no text or empty, or there is no answer.
    """

    prompt: str
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        require_text("prompt", self.prompt)
        if not isinstance(self.answers, (list, tuple)) or not self.answers:
            raise InvalidRequestError(f"answers: {shown(self.answers)} must be a non-empty list of strings")
        for answer in self.answers:
            require_text("answers", answer)
        object.__setattr__(self, "answers", tuple(self.answers))


def as_question(field: str, value: Any) -> Question:
    """A question as it is, or from an object with its two fields."""
    if isinstance(value, Question):
        return value
    if not isinstance(value, Mapping) or not {"prompt", "answers"} <= set(value):
        raise InvalidRequestError(f"{field}: {shown(value)} must be an object with prompt and answers")
    try:
        return Question(value["prompt"], value["answers"])
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{field}: {error}") from None


def require_text(field: str, value: Any) -> None:
    """Raise InvalidRequestError where ``value`` is no string, or an empty one."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{field}: {shown(value)} must be a string, is {type(value).__name__}")
    if not value.strip():
        raise InvalidRequestError(f"{field}: {shown(value)} is empty")


def require_clean(field: str, text: str) -> None:
    """Raise InvalidRequestError where ``text`` holds a character that no text may hold."""
    found = forbidden_character(text)
    if found is not None:
        place, name = found
        raise InvalidRequestError(
            f"{field}: {shown(text)} holds the character {name} at place {place}; "
            "no lone surrogate, control character or override of direction is accepted"
        )


_MOST = 240
"""Most characters of a value in a message."""


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, what cannot be seen escaped, and not more than fits."""
    text = _Short().repr(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 160
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out numbers of more than some thousand digits
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"a number of {x.bit_length()} bits"
