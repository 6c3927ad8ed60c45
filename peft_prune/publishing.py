"""What publishes and fetches stands above what is published: it is looked up when it is asked for, as names are."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def publisher(name: str) -> Callable[..., Any]:
    """A function of `peft_prune.hub`, which lower floors hand over to.

    Args:
        name: Its name, such as "push_session".
    """
    found: Callable[..., Any] = getattr(import_module("peft_prune.hub"), name)
    return found
