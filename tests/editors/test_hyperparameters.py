"""Every hyperparameter is looked at at the door: its name, its kind, its range, and that it is finite."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, get_type_hints

import pytest

from peft_prune.editors import EDITORS, MEMITHyperparameters, ROMEHyperparameters, get_editor

NUMBERS = [
    (editor, field.name, get_type_hints(EDITORS[editor].hyperparameters_class)[field.name])
    for editor in sorted(EDITORS)
    for field in dataclasses.fields(EDITORS[editor].hyperparameters_class)
    if get_type_hints(EDITORS[editor].hyperparameters_class)[field.name] in (int, float, float | None)
]


@pytest.mark.parametrize(("editor", "field", "hint"), NUMBERS)
def test_a_number_that_is_none_is_named_with_its_value(editor: str, field: str, hint: Any) -> None:
    bad: list[Any] = ["many", True, [1], -1, -(10**400)] + ([0.5] if hint is int else [math.nan, math.inf, -math.inf])
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{field}: {re.escape(repr(value))} must \S+"):
            get_editor(editor, **{field: value})


@pytest.mark.parametrize("editor", sorted(EDITORS))
@pytest.mark.parametrize("layers", [(), (2, 1), (1, 1), (-1, 0), (True,), ("1",), "12", 1.5, [[0]], {1}])
def test_layers_that_are_none_are_named(editor: str, layers: Any) -> None:
    with pytest.raises(ValueError, match=r"^layers: .* must be different layers from 0 in ascending order"):
        get_editor(editor, layers=layers)


@pytest.mark.parametrize("lengths", [5, "ab", [5, 10], [[5]], [[5, 0]], [[5, 2.0]], [["5", 2]], [[5, True]]])
def test_lengths_of_contexts_that_are_no_pairs_are_named(lengths: Any) -> None:
    with pytest.raises(ValueError, match=r"^context_lengths: .* must be pairs of tokens and count"):
        get_editor("memit", context_lengths=lengths)


def test_lists_from_json_become_the_tuples_that_they_mean() -> None:
    values = get_editor("memit", layers=[1, 2], context_lengths=[[5, 2]]).hyperparameters
    assert (values.layers, values.context_lengths) == ((1, 2), ((5, 2),))
    assert get_editor("rome", layers=3, context_lengths=[]).hyperparameters.layers == (3,)


@pytest.mark.parametrize("editor", sorted(EDITORS))
def test_an_unknown_name_lists_those_that_exist(editor: str) -> None:
    names = [field.name for field in dataclasses.fields(EDITORS[editor].hyperparameters_class)]
    with pytest.raises(ValueError, match=f"^speed: is no hyperparameter of {editor}; known are {', '.join(names)}$"):
        get_editor(editor, speed=1)


def test_one_editors_hyperparameters_are_not_another_ones() -> None:
    with pytest.raises(ValueError, match=r"^hyperparameters: ROMEHyperparameters is given, memit accepts MEMITHyper"):
        EDITORS["memit"](ROMEHyperparameters())
    # a dataclass that is made directly is looked at as well
    with pytest.raises(ValueError, match=r"^kl_factor: nan must be finite"):
        MEMITHyperparameters(kl_factor=math.nan)


def test_what_is_at_the_border_is_accepted() -> None:
    values = get_editor("rome", kl_factor=0, v_weight_decay=0.0, v_num_grad_steps=2, mom2_shrinkage=0).hyperparameters
    assert (values.kl_factor, values.v_num_grad_steps) == (0, 2)
    assert get_editor("emmet", ridge=0.0, mom2_update_weight=1).hyperparameters.ridge == 0
    assert get_editor("alphaedit", nullspace_threshold=None, L2=None).hyperparameters.L2 is None
    with pytest.raises(ValueError, match=r"^v_num_grad_steps: 1 must be at least 2; the last of them makes no update"):
        get_editor("rome", v_num_grad_steps=1)
