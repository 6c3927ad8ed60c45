"""Numbers, dates and lists as they are written in a sentence, and the words a report explains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from ..evaluation import Proportion
from ..monitoring import CONDITION_GROWTH, OUTPUT_PERTURBATION, UPDATE_NORM
from .document import Term

TERMS = (
    Term("Edit", "One fact that was overwritten in the model, such as the price of a product."),
    Term(
        "Took",
        "After the edit, its batch and the restraint of that batch, the model gave the new answer when it was asked "
        "freely. Nothing was put into its mouth.",
    ),
    Term(
        "Lost",
        "The edit took, but the model no longer gives the new answer: a restraint, an undo or a later edit has taken "
        "it away. The state of an edit is that of the last time the model was asked.",
    ),
    Term("Weakened", "The new answer is still given, with less than half of the probability with which the edit took."),
    Term(
        "Condition number κ",
        "How much a small disturbance can be amplified by a layer of the model. Editing raises it; the higher it "
        "is, the more likely the model is to lose abilities that have nothing to do with the edits.",
    ),
    Term(
        "Growth of κ",
        "The condition number of the edited layer divided by that of the same layer before any edit. 1 is untouched.",
    ),
    Term(
        "Restraint",
        "Shrinks the largest directions of all edits together, so that the model keeps its abilities. It may cost some "
        "edits their effect.",
    ),
    Term("ΔW and W₀", "The sum of all edits in a layer, and the layer before any edit. ‖ΔW‖₂ is the size of that sum."),
    Term("σmax(W₀)", "The largest factor by which the unedited layer stretches anything: the natural limit for ΔW."),
    Term(
        "95 % interval",
        "Where the true value lies, were the same thing tried on very many more cases like these, in 95 of 100 "
        "reports.",
    ),
    Term("Undo", "An edit can be taken out later; the others stay as they are."),
)


def number(value: float | None, digits: int = 3) -> str:
    """A figure with so many significant digits; very large and very small ones as powers of ten."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size and not 1e-4 <= size < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g} · 10^{int(exponent)}"
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(share: float) -> str:
    """A share in per cent, with one decimal where it is not whole; what is nearly none or nearly all is not rounded."""
    if 0 < abs(share) < 5e-4:
        return f"{number(100 * share, 1)} %"
    if 0.9995 <= share < 1 - 1e-6:
        return "over 99.9 %"
    text = f"{100 * share:.1f}"
    return text.removesuffix(".0") + " %"


def of_hundred(share: float) -> str:
    """A share: "about 72 of 100", "all", "none", "fewer than 1 of 100" or "more than 99 of 100"."""
    if share in (0.0, 1.0):
        return "all" if share else "none"
    amount = round(100 * share)
    if amount in (0, 100):
        return "more than 99 of 100" if amount else "fewer than 1 of 100"
    return f"about {amount} of 100"


def like_these(figure: Proportion) -> str:
    """A share and its 95 % interval as a person counts: "about 83 of 100 (of very many like these, 44 to 97)"."""
    if figure.value is None or figure.low is None or figure.high is None:
        return "–"
    span = f"of very many like these, {100 * figure.low:.0f} to {100 * figure.high:.0f}"
    return f"{of_hundred(figure.value)} ({span})"


def count(amount: int, what: str, several: str | None = None) -> str:
    """A number and its noun, in the plural where it needs one."""
    return f"{amount:,} {what if amount == 1 else several or what + 's'}"


def listed(names: Sequence[object], most: int = 6) -> str:
    """Names in a sentence; beyond ``most`` only how many more there are."""
    texts = [str(name) for name in names]
    if len(texts) > most:
        return f"{', '.join(texts[:most])} and {len(texts) - most} more"
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def edits(numbers: Sequence[int]) -> str:
    """Edits by their numbers, with ranges closed up: "edits 2 to 41 and 50"."""
    spans: list[list[int]] = []
    for one in sorted(numbers):
        if spans and one == spans[-1][1] + 1:
            spans[-1][1] = one
        else:
            spans.append([one, one])
    texts: list[str] = []
    for low, high in spans:
        texts += [f"{low} to {high}"] if high > low + 1 else [str(one) for one in range(low, high + 1)]
    return f"{'edit' if len(numbers) == 1 else 'edits'} {listed(texts)}"


def moment(when: datetime) -> str:
    """A time to the minute, in UTC."""
    return when.strftime("%Y-%m-%d %H:%M")


_FIGURES = {
    CONDITION_GROWTH: "growth of the condition number",
    UPDATE_NORM: "size of ΔW as a share of σmax(W₀)",
    OUTPUT_PERTURBATION: "change of ordinary outputs",
}


def figure_name(figure: str) -> str:
    """The name of a limit's figure in a sentence."""
    return _FIGURES.get(figure, figure.replace("_", " "))
