"""Shares and what becomes of them, as people count: of 100, with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evaluation.kinds import FigureKind
from .words import number, percent

Figure = Mapping[str, Any]
"""``{"value", "low", "high"}``, with None for an end that is not known."""


def hundreds(figure: Figure, to: str = " to ") -> str:
    """A share and its interval in hundredths: "72 (59 to 82)"; "–" where nothing was counted."""
    if figure["value"] is None:
        return "–"
    if figure["low"] is None:
        return f"{100 * figure['value']:.0f}"
    return f"{100 * figure['value']:.0f} ({100 * figure['low']:.0f}{to}{100 * figure['high']:.0f})"


def change(gap: Figure, kind: FigureKind) -> str:
    """A difference in words: "about 3 of 100 fewer (1 to 6 fewer)"; one that may be chance is said to be.

    Args:
        gap: After minus before; of a share, with its interval where that is known.
        kind: What kind of figure it is of; what has no bounds is no share, and is told as it is.
    """
    if kind.bounds != (0.0, 1.0):
        return _plain_change(gap["value"])
    said = fewer(gap["value"])
    low, high = gap["low"], gap["high"]
    if low is None or (low == high == gap["value"]):
        return said
    one, other = sorted((low, high), key=abs)
    if low <= 0 <= high:
        least, most = round(100 * low), round(100 * high)
        if least == most == 0:
            return said
        ends = [f"{-least} fewer"] if least else []
        ends += [f"{most} more"] if most else []
        span = " to ".join(ends) if len(ends) == 2 else f"none to {ends[0]}"
        return f"{said}, may be chance ({span})"
    ends = [str(round(100 * abs(end))) for end in (one, other)]
    side = "fewer" if high < 0 else "more"
    return f"{said} ({ends[0]} to {ends[1]} {side})" if ends[0] != ends[1] else said


def fewer(value: float) -> str:
    """A difference of two shares: "about 3 of 100 fewer", "less than 1 of 100 more", "no difference"."""
    if value == 0:
        return "no difference"
    side = "fewer" if value < 0 else "more"
    amount = round(100 * abs(value))
    return f"about {amount} of 100 {side}" if amount else f"less than 1 of 100 {side}"


def relative_change(before: float, after: float) -> str:
    """What a figure that is no share has grown by: "28 % higher"."""
    if before == after:
        return "no difference"
    if before <= 0:
        return _plain_change(after - before)
    return f"{percent(abs(after / before - 1))} {'higher' if after > before else 'lower'}"


def _plain_change(value: float) -> str:
    if value == 0:
        return "no difference"
    return f"{number(abs(value))} {'higher' if value > 0 else 'lower'}"
