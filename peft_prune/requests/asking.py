"""In which ways a request is asked, and the question that a prompt becomes where a model is spoken to."""

from __future__ import annotations

import re
from typing import Any

from ..errors import InvalidRequestError
from .question import shown

PLAIN, CHAT, BOTH = ASK = ("plain", "chat", "both")
"""The ways: the prompt as it stands, the question through the model's chat template, or both."""

FRAME = "Complete: {}"
"""What a prompt becomes for which no rule knows a question."""

_END = r" (?P<verb>is|was|are|were)(?: an?| the)?"
_RULES = (
    # "The mother tongue of {} is"
    (re.compile(rf"[Tt]he (?P<noun>[^.?!,;]+ of [^?!;]+?){_END}"), "What {verb} the {noun}?"),
    # "{}'s profession is an"
    (re.compile(rf"(?P<owner>[^.?!,;]+)['’]s (?P<noun>[^.?!,;]+?){_END}"), "What {verb} {owner}'s {noun}?"),
)
_ASKED = re.compile(r"(?P<question>[^.?!]+\?)(?:\s.*)?", re.DOTALL)


def require_ask(ask: Any) -> None:
    """Raise InvalidRequestError where ``ask`` is no way to ask."""
    if ask not in ASK:
        raise InvalidRequestError(f"ask: {shown(ask)} is not one of {', '.join(ASK)}")


def question_form(prompt: str) -> str:
    """The question that a prompt, or a template with ``{}``, asks: by rule where the rule is certain, else in `FRAME`.

    The rules are of English and read a prompt of one sentence: "The X of Y is" and "Y's X is" ask what it is, and what
    holds a question already asks it.
    """
    text = " ".join(prompt.split())
    asked = _asked(text)
    if asked is not None:
        return asked
    for pattern, form in _RULES:
        found = pattern.fullmatch(text)
        if found:
            return form.format(**found.groupdict())
    return FRAME.replace("{}", text, 1)


def answer_form(prompt: str) -> str:
    """How an answer to that question begins in the prompt's own words, up to where the target follows.

    It is the prompt itself, or what stands behind the question that it holds; nothing where it is a question alone.
    """
    text = " ".join(prompt.split())
    return text.removeprefix(_asked(text) or "").lstrip()


def _asked(text: str) -> str | None:
    """The question that a prompt holds."""
    found = _ASKED.fullmatch(text)
    if found and ("{}" not in text or "{}" in found["question"]):
        return found["question"]
    return None
