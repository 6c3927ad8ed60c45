"""A prompt with every answer that counts as right, and the checks of a field that holds text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        if isinstance(self.answers, str) or not self.answers:
            raise InvalidRequestError(f"answers: {self.answers!r} must be a non-empty list of strings")
        for answer in self.answers:
            require_text("answers", answer)
        object.__setattr__(self, "answers", tuple(self.answers))


def as_question(field: str, value: Any) -> Question:
    """A question as it is, or from an object with its two fields."""
    if isinstance(value, Question):
        return value
    if not isinstance(value, Mapping) or set(value) != {"prompt", "answers"}:
        raise InvalidRequestError(f"{field}: {value!r} must be an object with prompt and answers")
    try:
        return Question(**value)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{field}: {error}") from None


def require_text(field: str, value: Any) -> None:
    """Raise InvalidRequestError where ``value`` is no string, or an empty one."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{field}: {value!r} must be a string, is {type(value).__name__}")
    if not value.strip():
        raise InvalidRequestError(f"{field}: {value!r} is empty")
