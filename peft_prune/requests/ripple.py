"""The edits of RippleEdits (Cohen et al. 2024), which write a fact as a sentence and its parts as identifiers."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from .evaluation_fields import LOCALITY_TESTS, PORTABILITY_TESTS


def ripple_fact(record: Mapping[str, Any]) -> dict[str, Any]:
    """Prompt, subject and targets of a record with ``edit``, as far as it shows them.

    The edited sentence and the original one tell the targets, in which they differ; the subject is what a test query on
    the same identifier has in common with them.
    """
    edit = dict(record["edit"])
    original = edit.get("original_fact")
    sentences = [edit.get("prompt"), original.get("prompt") if isinstance(original, Mapping) else None]
    if all(isinstance(one, str) for one in sentences) and not {"target", "target_new"} & set(edit):
        edit |= _parted(*(str(one).strip().removesuffix(".").split() for one in sentences))
    elif isinstance(edit.get("prompt"), str):
        edit["prompt"] = _without_target(edit["prompt"], edit.get("target_new", edit.get("target")))
    if "subject" not in edit and isinstance(edit.get("prompt"), str):
        subject = record.get("subject") or _named(edit["prompt"], edit.get("subject_id"), record)
        edit |= {"subject": subject} if subject else {}
    edit.setdefault("relation_id", edit.get("relation"))
    return edit


def _parted(new: list[str], true: list[str]) -> dict[str, str]:
    """What the words of both sentences begin with in common, up to its last small word, and what each has beyond."""
    start = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(new, true, strict=False)))
    while start and not new[start - 1][:1].islower():
        start -= 1  # both targets begin with this word
    return {
        "prompt": " ".join(new[:start]),
        "target_new": " ".join(new[start:]),
        "target_true": " ".join(true[start:]),
    }


def _without_target(prompt: str, target: Any) -> str:
    bare = prompt.strip().removesuffix(".")
    return bare.removesuffix(target).rstrip() if isinstance(target, str) and bare.endswith(target) else prompt


def _named(prompt: str, identifier: Any, record: Mapping[str, Any]) -> str | None:
    """The longest run of words, not at the beginning, that the prompt shares with a query on the same subject."""
    words = prompt.split()
    best: list[str] = []
    for query in _queries(record):
        if query.get("subject_id") != identifier or not isinstance(query.get("prompt"), str):
            continue
        blocks = difflib.SequenceMatcher(None, words, query["prompt"].split(), autojunk=False).get_matching_blocks()
        runs = [_capitalised(words[block.a : block.a + block.size]) for block in blocks if block.a > 0]
        best = max([best, *runs], key=len)
    return " ".join(best) or None


def _capitalised(words: list[str]) -> list[str]:
    """The words from the first to the last that is no small word."""
    places = [index for index, word in enumerate(words) if not word[:1].islower()]
    return words[places[0] : places[-1] + 1] if places else []


def _queries(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for kind in (*LOCALITY_TESTS, *PORTABILITY_TESTS):
        tests = record.get(kind)
        for test in tests if isinstance(tests, list) else ():
            queries = test.get("test_queries") if isinstance(test, Mapping) else None
            yield from (one for one in (queries if isinstance(queries, list) else ()) if isinstance(one, Mapping))
