"""Which factors a request sees that was under way when others took their place: its own, to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

Acting = tuple[nn.Linear, nn.Linear, float]
"""A, B and the scale by which forward multiplies their product."""


class Moment:
    """The time between two swaps. Every request holds the one that it began in; with the last of them it goes."""


_BEGAN: ContextVar[tuple[Moment, ...]] = ContextVar("began", default=())
"""The moments in which the requests of this thread, or task, began: one for each model that calls the next."""


class Earlier:
    """The factors that a layer had at earlier moments, for as long as a request lasts that began there."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Moment, dict[str, Acting]] = WeakKeyDictionary()

    def keep(self, moment: Moment, adapter_name: str, acting: Acting) -> None:
        """Remember what acts until now, for requests of ``moment`` and of every earlier one that lasts."""
        for kept in [self._kept.setdefault(moment, {}), *self._kept.values()]:
            kept.setdefault(adapter_name, acting)

    def of_this_request(self, adapter_name: str) -> Acting | None:
        """What the request that runs here goes on with; None where that is what acts now."""
        for moment in _BEGAN.get():
            kept = self._kept.get(moment, {}).get(adapter_name)
            if kept is not None:
                return kept
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Earlier:
        return Earlier()

    def __reduce__(self) -> tuple[type[Earlier], tuple[()]]:
        # no request goes on in a copy
        return Earlier, ()


@contextmanager
def request(moment: Moment) -> Iterator[None]:
    """For the span of a request: it began in ``moment``. Within another one, it sees what that one sees."""
    token = _BEGAN.set((*_BEGAN.get(), moment))
    try:
        yield
    finally:
        _BEGAN.reset(token)
