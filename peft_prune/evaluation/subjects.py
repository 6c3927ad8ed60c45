"""Leave out what names an edited subject: an edit may change it, so it measures no side effect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..requests import EditRequest


def without_subjects(texts: Sequence[str], requests: Iterable[EditRequest]) -> list[str]:
    """The texts that name no edited subject, as whole words and with the same capitals."""
    subjects = edited_subjects(requests)
    return [text for text in texts if not names_any(text, subjects)]


def edited_subjects(requests: Iterable[EditRequest]) -> frozenset[str]:
    """The subjects of ``requests`` that have one, without outer space."""
    return frozenset(request.subject.strip() for request in requests if request.subject is not None)


def names_any(text: str, subjects: Iterable[str]) -> bool:
    """Whether ``text`` holds one of ``subjects`` as whole words, with the same capitals."""
    # the plain search first: it is fast, and nearly always says no
    return any(
        subject in text and re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", text) is not None for subject in subjects
    )
