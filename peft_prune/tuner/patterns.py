"""Whether a regular expression can be matched against module names in bounded time."""

from __future__ import annotations

import re
import sys
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants as codes
    from re import _parser as parser
else:
    import sre_constants as codes
    import sre_parse as parser

MOST_WAYS = 1_000_000
"""Ways to match part of a name that a pattern may have; Python tries so many in a hundredth of a second."""

_LONGEST_PATTERN = 20_000
_NAME = 64  # characters of a usual module name
_OCCURRENCES = 8  # of one character in it
# Python 3.10 knows neither possessive repetitions nor atomic groups
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, getattr(codes, "POSSESSIVE_REPEAT", None))
_ATOMIC_GROUP = getattr(codes, "ATOMIC_GROUP", None)


def require_bounded(field: str, pattern: str) -> None:
    """Raise ValueError unless ``pattern`` is a regular expression that backtracks little on any module name.

    Python tries, where a match fails, every way to divide the text among the repetitions and alternatives of the
    pattern. Their number is estimated from the structure alone: a repetition of what itself can match in several ways,
    as in ``(a+)+``, has exponentially many; repetitions side by side, as in ``.*.*.*``, the power of their number.

    Args:
        field: What the pattern belongs to, for the message.
        pattern: A regular expression.
    """
    shown = repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"{field}: {shown} has {len(pattern)} characters; at most {_LONGEST_PATTERN} are accepted")
    try:
        tree = parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{field}: {shown} is no regular expression: {error}") from None
    try:
        ways = _Ways().of(tree)
    except RecursionError:
        ways = MOST_WAYS + 1
    if ways > MOST_WAYS:
        raise ValueError(
            f"{field}: {shown} cannot be matched in bounded time; a pattern without repetitions inside of repetitions "
            "and with few of them side by side is accepted"
        )


class _Ways:
    """Estimates in how many ways a parsed pattern can match the beginning of a name."""

    def __init__(self) -> None:
        self._behind_literal = False
        self._tried = 0  # inside of lookarounds, which are not entered again

    def of(self, sequence: Any) -> int:
        """Ways of a whole pattern."""
        return max(self._sequence(sequence), self._tried)

    def _sequence(self, sequence: Any) -> int:
        ways = 1
        for code, argument in sequence:
            ways = min(ways * self._item(code, argument, ways), MOST_WAYS + 1)
        return ways

    def _item(self, code: Any, argument: Any, before: int) -> int:
        if code is codes.LITERAL:
            self._behind_literal = True
            return 1
        if code is codes.SUBPATTERN:
            return self._sequence(argument[3])
        if code is codes.BRANCH:
            return self._branch(argument[1])
        if code is codes.GROUPREF_EXISTS:
            return self._branch([part for part in argument[1:] if part is not None])
        if code in _REPEATS:
            return self._repeat(*argument)
        if code in (codes.ASSERT, codes.ASSERT_NOT, _ATOMIC_GROUP):
            inner = argument if code is _ATOMIC_GROUP else argument[1]
            self._tried = max(self._tried, before * self._sequence(inner))
            return 1
        return 1

    def _branch(self, alternatives: Any) -> int:
        start, ways = self._behind_literal, []
        for alternative in alternatives:
            self._behind_literal = start
            ways.append(self._sequence(alternative))
        firsts = [alternative[0] if len(alternative) else None for alternative in alternatives]
        letters = {first[1] for first in firsts if first is not None and first[0] is codes.LITERAL}
        return max(ways) if len(letters) == len(ways) else sum(ways)

    def _repeat(self, least: int, most: Any, body: Any) -> int:
        start = self._behind_literal
        inner = self._sequence(body)
        empty = body.getwidth()[0] == 0
        times = _NAME if most is codes.MAXREPEAT else min(int(most), _NAME)
        if (inner > 1 or empty) and times > 1:
            inner = min(max(inner, 2) ** times, MOST_WAYS + 1)
        self._behind_literal = False
        if least == most:
            return inner
        choices = int(times) - min(int(least), _NAME) + 1
        return inner * max(min(choices, _OCCURRENCES if start else _NAME), 1)
