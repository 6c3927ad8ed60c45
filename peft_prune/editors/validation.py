"""Whether the values of a dataclass of hyperparameters are of their fields' kind, finite and in range."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_type_hints

_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a word", (str,)),
}


def check_kind(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of another kind than a field's; fields of other types are checked by their dataclass.

    Raises:
        ValueError: It is of another kind, NaN or Inf.
    """
    options = get_args(hint)
    if NoneType in options and len(options) == 2:
        if value is None:
            return
        hint = next(option for option in options if option is not NoneType)
    if hint not in _KINDS:
        return
    wanted, types = _KINDS[hint]
    if not isinstance(value, types) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{name}: {value!r} must be {wanted}")
    number: Any = value
    if hint is float and not abs(number) <= sys.float_info.max:
        raise ValueError(f"{name}: {value!r} must be finite")


def check_kinds(values: Any) -> None:
    """`check_kind` for every field of a dataclass."""
    hints = get_type_hints(type(values))
    for field in fields(values):
        check_kind(field.name, getattr(values, field.name), hints[field.name])


def check_above_zero(values: Any, *names: str) -> None:
    """Raise ValueError where one of these fields is not above 0; None is left alone."""
    _check(values, names, lambda value: value > 0, "above 0")


def check_zero_or_above(values: Any, *names: str) -> None:
    """Raise ValueError where one of these fields is below 0; None is left alone."""
    _check(values, names, lambda value: value >= 0, "0 or above")


def check_share(values: Any, *names: str) -> None:
    """Raise ValueError where one of these fields does not lie between 0 and 1, both left out."""
    _check(values, names, lambda value: 0 < value < 1, "between 0 and 1")


def check_one_of(values: Any, name: str, accepted: Sequence[str]) -> None:
    """Raise ValueError where a field is none of these words; None is left alone."""
    value = getattr(values, name)
    if value is not None and value not in accepted:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(accepted)}")


def checked_layers(layers: Any) -> tuple[int, ...] | None:
    """Layers as a tuple, or None as it is.

    Raises:
        ValueError: They are no whole numbers from 0, one comes twice, or they are not in ascending order.
    """
    if layers is None:
        return None
    found = tuple(layers) if isinstance(layers, (tuple, list, range)) else (layers,)
    if not found or not all(_is_whole(layer, 0) for layer in found) or list(found) != sorted(set(found)):
        raise ValueError(f"layers: {list(found)} must be different layers from 0 in ascending order")
    return found


def checked_context_lengths(lengths: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of tokens and count as tuples.

    Raises:
        ValueError: They are no pairs of whole numbers from 1.
    """
    pairs = [tuple(pair) if isinstance(pair, (tuple, list)) else pair for pair in _items(lengths)]
    if not all(isinstance(pair, tuple) and len(pair) == 2 and all(_is_whole(n, 1) for n in pair) for pair in pairs):
        raise ValueError(f"context_lengths: {lengths!r} must be pairs of tokens and count, such as [[5, 10], [10, 10]]")
    return tuple((length, count) for length, count in pairs)


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else [value]


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check(values: Any, names: Sequence[str], accepted: Callable[[Any], bool], words: str) -> None:
    for name in names:
        value = getattr(values, name)
        if value is not None and not accepted(value):
            raise ValueError(f"{name}: {value} must be {words}")
