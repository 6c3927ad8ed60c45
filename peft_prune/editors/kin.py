"""Names like those of the subjects that are edited, which the model itself finds: what an edit must not reach."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..characters import forbidden_character
from ..models.decoder import unwrapped
from ..models.generation import drawn_texts
from ..models.sharing import shared, sharers
from ..moving import moving_bar
from ..requests import EditRequest

REQUESTS_AT_ONCE = 16
WRITTEN_TOKENS = 40
"""Of a list: about five names."""
MOST_WORDS = 6
"""Of a name; more are a sentence."""

_ASKED = 'Here is a list of names that are like "{0}":\n1. {0}\n2.'
_NUMBERED = re.compile(r"\s*\d+[.)]\s*(.*)")
_NO_NAME = re.compile(r"[{}:;!?,()\"“”|]|\.\s")


def names_alike(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    seed: int = 0,
    *,
    progress: bool = False,
) -> list[tuple[str, ...]]:
    """For each request the names that the model writes beside its subject; none for one without a subject.

    The model is shown the subject as the first entry of a numbered list of names like it, and goes on with the list.
    They need not be names of anything: "Lancia Fusti" and "Krugul" are as near to "Lancia Ypsilon" and "Viacheslav
    Belavkin" as what there is, and an edit of these must reach neither. `REQUESTS_AT_ONCE` requests are drawn together,
    so that what is found for one depends on those beside it.

    Args:
        model: It is left as it was; what acts in it acts here.
        tokenizer: Its tokenizer.
        requests: The edits.
        seed: Of the drawing.
        progress: Show a bar.
    """
    asking = [index for index, request in enumerate(requests) if request.subject is not None]
    parts = [asking[start : start + REQUESTS_AT_ONCE] for start in range(0, len(asking), REQUESTS_AT_ONCE)]
    found: list[tuple[str, ...]] = [() for _ in requests]
    with moving_bar(total=len(asking), desc="Names alike", unit=" edits", disable=not progress) as bar:

        def named(own: Sequence[Sequence[int]]) -> list[list[tuple[str, ...]]]:
            names = []
            for part in own:
                subjects = [str(requests[index].subject).strip() for index in part]
                asked = [_ASKED.format(subject) for subject in subjects]
                lists = drawn_texts(model, tokenizer, asked, WRITTEN_TOKENS, seed)
                names.append([names_in(text, subject) for subject, text in zip(subjects, lists, strict=True)])
                bar.update(min(len(part) * sharers(unwrapped(model)), len(asking) - bar.n))
            return names

        for part, names in zip(parts, shared(unwrapped(model), "names alike", parts, named), strict=True):
            for index, own in zip(part, names, strict=True):
                found[index] = own
    return found


def names_in(text: str, subject: str) -> tuple[str, ...]:
    """The names that such a list goes on with; its last line may be cut off and does not count.

    What holds the subject or stands in it is no other: "Porsche" beside "Porsche Panamera".

    Args:
        text: From behind the second number on.
        subject: The first entry.
    """
    found: dict[str, None] = {}
    lines = [f"2. {text.lstrip()}"] if "\n" not in text else f"2. {text.lstrip()}".split("\n")[:-1]
    for line in lines:
        numbered = _NUMBERED.fullmatch(line)
        if numbered is None:
            break
        name = numbered[1].strip().rstrip(".")
        is_name = 0 < len(name.split()) <= MOST_WORDS and not _NO_NAME.search(name) and not forbidden_character(name)
        if is_name and not _is_of(name, subject):
            found[name] = None
    return tuple(found)


def _is_of(name: str, subject: str) -> bool:
    one, other = name.casefold(), subject.casefold()
    return one in other or other in one
