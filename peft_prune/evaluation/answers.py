"""When an answer counts: against several right ones, as a label, as a summary."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

from ..errors import MissingPackageError
from ..models.answers import normalized

ROUGE = ("rouge1", "rouge2", "rougeL")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_normalized(text: str) -> str:
    """``text`` in lower case, without punctuation, articles and surplus space (Rajpurkar et al. 2016, section 6.1)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exactly_matches(answer: str, references: Sequence[str]) -> bool:
    """Whether ``answer`` is one of the right answers after :func:`squad_normalized`.

    A right answer of which that leaves nothing ("A+" loses its article and its sign) must be met as it stands.
    """
    own = squad_normalized(answer)
    if own and own in {squad_normalized(reference) for reference in references}:
        return True
    bare = {normalized(reference) for reference in references if not squad_normalized(reference)}
    return normalized(answer) in bare


def has_label(answer: str, label: str) -> bool:
    """Whether ``answer`` begins with the words of this label, case folded; hyphens and underscores part words."""
    own, wanted = _words(answer), _words(label)
    return bool(wanted) and own[: len(wanted)] == wanted


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s.,;:!?_-]+", normalized(text)) if word]


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
        raise MissingPackageError("rouge_score is not installed; pip install 'peft-prune[evaluation]'") from None
    return RougeScorer(list(ROUGE), use_stemmer=True)
