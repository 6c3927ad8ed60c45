"""What every editing method declares, and the registry that finds it by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .second_moment import SecondMoments


@dataclass(frozen=True)
class Edit:
    """The update of one request, or of a batch that is computed together.

    Args:
        requests: The requests it holds.
        updates: Update of each module, by its name in the base model; B (out, k), A (k, in), float32.
        probability_before: Least probability of the target over the contexts, before, for each request.
        probability: The same that the optimised value reaches.
        steps: Gradient steps for each request.
    """

    requests: tuple[EditRequest, ...]
    updates: dict[str, LowRankUpdate]
    probability_before: tuple[float, ...] = ()
    probability: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """What an editor learns of a model before the first edit, and keeps for all of them.

    Args:
        layers: The layers that are edited.
        contexts: Prefixes; the first is empty.
        statistics: Second moments of the layers' inputs, or None.
    """

    layers: tuple[int, ...]
    contexts: tuple[str, ...] = ("",)
    statistics: SecondMoments | None = None
    state: dict[str, Any] = field(default_factory=dict)


class Editor(ABC):
    """An editing method: turns requests into low-rank updates and never changes the model.

    A subclass declares the class attributes and the dataclass of its hyperparameters.
    """

    name: ClassVar[str]
    pretty_name: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    url: ClassVar[str]
    hyperparameters_class: ClassVar[type]

    def __init__(self, hyperparameters: Any = None) -> None:
        self.hyperparameters = self.hyperparameters_class() if hyperparameters is None else hyperparameters

    @classmethod
    def automatic(cls, model: Any) -> dict[str, Any]:
        """Hyperparameters that differ from the published defaults for a model like this one, where any do."""
        return {}

    @abstractmethod
    def layers(self, model: Any) -> tuple[int, ...]:
        """The layers that this editor changes in ``model``.

        Raises:
            UnsupportedModelError: The model has no such layer.
        """

    @abstractmethod
    def prepare(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, statistics: SecondMoments | None = None
    ) -> Prepared:
        """Find layers, contexts and factors for a model; done once, on the unedited model."""

    @abstractmethod
    def compute(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], prepared: Prepared
    ) -> Edit:
        """The update that makes ``requests`` hold, computed on the model as it is now."""


EDITORS: dict[str, type[Editor]] = {}


def register_editor(editor: type[Editor]) -> type[Editor]:
    """Class decorator: make an editor available to `get_editor` under its ``name``."""
    EDITORS[editor.name] = editor
    return editor


def editor_names() -> list[str]:
    """The names that `get_editor` knows."""
    return list(EDITORS)


def get_editor(name: str, *, model: Any = None, **hyperparameters: Any) -> Editor:
    """The editor of that name with these hyperparameters; the others have their published defaults.

    Args:
        name: One of `editor_names`.
        model: Take `Editor.automatic` values for this model in place of published defaults.
        hyperparameters: Fields of the editor's dataclass; they overrule both.

    Raises:
        ValueError: The name or a hyperparameter is unknown, or a value does not fit.
    """
    if name not in EDITORS:
        raise ValueError(f"editor: {name!r} is not one of {', '.join(EDITORS)}")
    editor = EDITORS[name]
    known = {f.name: f for f in fields(editor.hyperparameters_class)}
    for key in hyperparameters:
        if key not in known:
            raise ValueError(f"{key}: is no hyperparameter of {name}; known are {', '.join(known)}")
    automatic = {} if model is None else editor.automatic(model)
    return editor(replace(editor.hyperparameters_class(), **{**automatic, **hyperparameters}))
