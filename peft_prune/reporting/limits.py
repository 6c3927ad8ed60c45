"""How far a figure has come towards its limit, and what that is called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..monitoring import CONDITION_GROWTH, Limit
from .document import Level

FARTHEST = 100
NEAR = 0.75
"""Share of the way to a limit from which on it counts as near."""


def limits_of(meta: Mapping[str, Any], max_growth: float | None = None) -> list[Limit]:
    """The limits of a history: those its guards watched, that of the threshold schedule, or one that is given now.

    Args:
        meta: Of the history.
        max_growth: Takes the place of any limit of the condition number's growth.

    Raises:
        ValueError: ``max_growth`` is not above 1.
    """
    if max_growth is not None and not max_growth > 1:
        raise ValueError(f"max_growth: {max_growth} must be above 1")
    found = [Limit(**one) for one in meta.get("limits", ())]
    config = meta.get("config", {})
    if max_growth is not None:
        found = [one for one in found if one.figure != CONDITION_GROWTH]
        found.insert(0, Limit(CONDITION_GROWTH, max_growth, 1.0, False, "warn"))
    elif config.get("restrain_on") == "threshold" and not any(one.figure == CONDITION_GROWTH for one in found):
        found.insert(0, Limit(CONDITION_GROWTH, config["max_condition_growth"], 1.0, False, "restrain"))
    return found


def progress(limit: Limit, value: float) -> float:
    """Share of the way from the base's value to the limit, 1 at the limit; inf for a value that is no number."""
    if not math.isfinite(value):
        return math.inf
    way = limit.value - limit.base
    if way == 0:
        passed = value < limit.value if limit.higher_is_better else value > limit.value
        return math.inf if passed else 0.0
    return max((value - limit.base) / way, 0.0)


def level_of(share: float) -> Level:
    """What a share of the way is called."""
    return "passed" if share > 1 else "near" if share >= NEAR else "good"


def level_with(level: Level, fallen: int, asked: int) -> Level:
    """The level of the limits, or that of the edits if it is worse: nothing is good while an edit does not hold.

    Args:
        level: Of the limits.
        fallen: Edits that do not hold.
        asked: All of which that is known.
    """
    if not fallen:
        return level
    return "passed" if level == "passed" or 2 * fallen > asked else "near"


def edits_left(limit: Limit, edits: Sequence[float], values: Sequence[float]) -> int | None:
    """About how many more edits reach the limit at the pace of the later half of the points; None where none do.

    Args:
        limit: The limit.
        edits: Numbers of edits, ascending.
        values: The figure at each of them.
    """
    points = [(x, y) for x, y in zip(edits, values, strict=True) if math.isfinite(y)]
    points = points[len(points) // 2 :]
    if len(points) < 3 or points[-1][0] == points[0][0]:
        return None
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    left = limit.value - points[-1][1]
    # a pace at which the limit is farther than a hundred times all edits made is none
    if slope * left <= 0 or abs(left) > abs(slope) * FARTHEST * points[-1][0]:
        return None
    return math.ceil(left / slope)
