"""Numbers, dates and lists as they are written in a sentence, and the words a report explains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from ..evaluation import Proportion
from .document import Term

RATIO = "growth of the condition number"

TERMS = (
    Term("Edit", "One fact that was overwritten in the model, such as the price of a product."),
    Term("Took", "After the edit the model, asked freely, gave the new answer. Nothing was put into its mouth."),
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
    """A figure with so many significant digits."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if value and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(share: float) -> str:
    """A share in per cent, with one decimal where it is not whole; a tiny one with one digit."""
    if 0 < abs(share) < 5e-4:
        return f"{100 * share:.1g} %"
    text = f"{100 * share:.1f}"
    return text.removesuffix(".0") + " %"


def interval(figure: Proportion) -> str:
    """The 95 % interval of a share, in per cent."""
    if figure.low is None or figure.high is None:
        return "–"
    return f"{percent(figure.low)} to {percent(figure.high)}"


def count(amount: int, what: str, several: str | None = None) -> str:
    """A number and its noun, in the plural where it needs one."""
    return f"{amount:,} {what if amount == 1 else several or what + 's'}"


def listed(names: Sequence[object], most: int = 6) -> str:
    """Names in a sentence; beyond ``most`` only how many more there are."""
    texts = [str(name) for name in names]
    if len(texts) > most:
        return f"{', '.join(texts[:most])} and {len(texts) - most} more"
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def moment(when: datetime) -> str:
    """A time to the minute, in UTC."""
    return when.strftime("%Y-%m-%d %H:%M")


def figure_name(figure: str) -> str:
    """The name of a limit's figure in a sentence."""
    return RATIO if figure == "condition_growth" else figure.replace("_", " ")
