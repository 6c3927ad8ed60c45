"""Where a prompt names its subject, up to Unicode form and quotes."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from ..characters import same_form
from ..errors import InvalidRequestError
from .question import shown


def template(prompt: Any, subject: Any, field: str) -> Any:
    """The prompt with ``{}`` in the subject's place; what cannot be a template is left to the record's own check.

    Raises:
        InvalidRequestError: The prompt neither holds ``{}`` nor names the subject.
    """
    if not (isinstance(prompt, str) and isinstance(subject, str) and subject.strip()) or "{}" in prompt:
        return prompt
    text, places = _evened(prompt)
    name = same_form(subject)
    words = list(re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text)) if name else []
    # within a longer word only where scripts without spaces, or endings, leave no other place
    start = words[-1].start() if words else text.rfind(name) if name else -1
    if start < 0:
        raise InvalidRequestError(f"{field}: {shown(prompt)} must hold '{{}}' or name the subject {shown(subject)}")
    return f"{prompt[: places[start]]}{{}}{prompt[places[start + len(name)] :]}"


def _evened(text: str) -> tuple[str, list[int]]:
    """``text`` in one form, and for each of its characters, and its end, where that stands in ``text``."""
    found, places, start = "", [], 0
    for end in range(1, len(text) + 1):
        if end < len(text) and _joins(text[end]):
            continue
        form = same_form(text[start:end])
        found += form
        places += [start] * len(form)
        start = end
    return found, [*places, len(text)]


def _joins(character: str) -> bool:
    """Whether it composes with what stands before it: a mark, or a vowel or final of a Korean syllable."""
    return unicodedata.combining(character) > 0 or "\u1160" <= character <= "\u11ff" or character in "\uff9e\uff9f"
