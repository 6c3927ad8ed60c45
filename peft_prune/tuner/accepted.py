"""What every field of the configuration takes, by its type in JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**18 else "a number of 18 digits or more"
    return text if len(text) <= 80 else text[:77] + "..."


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) > _LARGEST


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


def _are_words(value: Any) -> bool:
    return isinstance(value, (list, tuple, set)) and all(isinstance(item, str) for item in value)


def _maybe(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or accepts(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _are_layers(value: Any) -> bool:
    return _is_index(value) or (
        isinstance(value, (list, tuple, set, range)) and len(value) > 0 and all(_is_index(item) for item in value)
    )


_LARGEST = 10**12
_WORD_OR_WORDS = (_maybe(lambda value: _is_word(value) or _are_words(value)), "a string or a list of strings")

ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_number, "an integer of at least 0"),
    "target_modules": _WORD_OR_WORDS,
    "exclude_modules": _WORD_OR_WORDS,
    "layers_to_transform": (_maybe(_are_layers), "a layer's index, at least 0, or a list of such that is not empty"),
    "layers_pattern": _WORD_OR_WORDS,
    "experts": (_is_word, "a string"),
    "restraint": (_is_word, "a string"),
    "alpha": (lambda value: _is_number(value) or value == math.inf, "a finite number above 1"),
    "restraint_pattern": (
        _maybe(lambda value: isinstance(value, dict) and all(_is_word(x) for pair in value.items() for x in pair)),
        "an object of strings",
    ),
    "restrain_on": (_is_word, "a string"),
    "restrain_every": (_is_number, "an integer of at least 1"),
    "max_condition_growth": (_is_number, "a number above 1"),
    "max_update_norm": (_maybe(_is_number), "a finite number above 0, or left out"),
    "max_output_perturbation": (_maybe(_is_number), "a finite number above 0, or left out"),
    "max_rank": (_maybe(_is_number), "an integer of at least 1"),
    "consolidate": (_is_word, "a string"),
    "consolidate_every": (_is_number, "an integer of at least 1"),
    "consolidate_window": (_maybe(_is_number), "an integer of at least 0"),
    "consolidated": (_is_number, "an integer of at least 0"),
    "init_weights": (_is_flag, "true or false"),
    "bias": (_is_word, "one of none, all, prune_edit_only"),
    "modules_to_save": (_maybe(_are_words), "a list of strings"),
    "strict_base": (_is_flag, "true or false"),
    "base_fingerprint": (_maybe(_is_word), "a string"),
    "beneath": (_maybe(lambda value: isinstance(value, list) and all(map(_is_word, value))), "a list of strings"),
    "restrained": (_is_flag, "true or false"),
    "edits": (_is_number, "an integer of at least 0"),
    "ranks": (
        _maybe(lambda value: isinstance(value, dict) and all(_is_word(k) and _is_index(v) for k, v in value.items())),
        "an object of layer names and ranks, integers of at least 0",
    ),
    "auto_mapping": (_maybe(lambda value: isinstance(value, dict)), "an object"),
    "peft_version": (_maybe(_is_word), "a string"),
    "base_model_name_or_path": (_maybe(_is_word), "a string"),
    "revision": (_maybe(_is_word), "a string"),
    "inference_mode": (_is_flag, "true or false"),
}
"""What every field takes, by its JSON type; the checks that follow look at the values."""
