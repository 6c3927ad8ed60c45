"""When an answer counts: against several right ones, as a label, as a summary."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

from ..errors import MissingPackageError
from ..generation import normalized

ROUGE = ("rouge1", "rouge2", "rougeL")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_normalized(text: str) -> str:
    """``text`` in lower case, without punctuation, articles and surplus space (Rajpurkar et al. 2016, section 6.1)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exactly_matches(answer: str, references: Sequence[str]) -> bool:
    """Whether ``answer`` is one of the right answers after :func:`squad_normalized`."""
    return squad_normalized(answer) in {squad_normalized(reference) for reference in references}


def has_label(answer: str, label: str) -> bool:
    """Whether ``answer`` is this label: its first word, case folded, with spaces and hyphens read as underscores."""
    words = re.split(r"[\s.,;:!?]+", normalized(answer).replace("-", "_").replace("not entail", "not_entail").strip())
    return bool(words) and words[0] == normalized(label).replace(" ", "_").replace("-", "_")


def rouge_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) with stemming, of each answer against its best reference.

    Raises:
        MissingPackageError: rouge_score is not installed.
    """
    scorer = _scorer()
    found: dict[str, list[float]] = {name: [] for name in ROUGE}
    for answer, right in zip(answers, references, strict=True):
        best = scorer.score_multi(list(right), answer)
        for name in ROUGE:
            found[name].append(float(best[name].fmeasure))
    return found


def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError:
        raise MissingPackageError("rouge_score is not installed; install peft-prune[evaluation]") from None
    return RougeScorer(list(ROUGE), use_stemmer=True)
