"""What every editing method declares, and the registry that finds it by name."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, get_type_hints

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import EditFailedError, InvalidRequestError, UnsupportedModelError
from ..models.decoder import decoder_blocks
from ..models.experts import SHARED
from ..models.mlp import changed_modules, listed, mlp_output_modules, refused_layers
from ..models.probe import require_text_decoder
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .presets import preset
from .second_moment import SecondMoments
from .shortcuts import require_partial_passes
from .solving import Solving
from .validation import check_kind


@dataclass(frozen=True)
class Edit:
    """The update of one request, or of a batch that is computed together.

    Args:
        requests: The requests it holds.
        updates: Update of each module, by its name in the base model; B (out, k), A (k, in), float32.
        probability_before: Least probability of the target over the contexts, before, for each request.
        probability: The same that the optimised value reaches.
        steps: Gradient steps for each request.
        owners: For each module, the index of the request that each factor column belongs to, where one does.
        keys: For each module, the keys of the requests, (requests, in) float32, for editors with a history.
        features: For each module, what each request brings to running statistics, (requests, 2, 1 + in + out) float32
            (`running.part_of`), for editors that normalise by them.
    """

    requests: tuple[EditRequest, ...]
    updates: dict[str, LowRankUpdate]
    probability_before: tuple[float, ...] = ()
    probability: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    owners: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_separable(self) -> bool:
        """Whether every factor column belongs to one request, so that `without` can leave some out."""
        return set(self.owners) == set(self.updates)

    def beside(self, other: Edit) -> Edit:
        """This edit with every tensor on the device of that of another one, which another process has computed."""
        if self is other:
            return self
        updates = {name: update.to(device=other.updates[name].B.device) for name, update in self.updates.items()}
        keys = {name: keys.to(other.keys[name].device) for name, keys in self.keys.items()}
        features = {name: part.to(other.features[name].device) for name, part in self.features.items()}
        return replace(self, updates=updates, keys=keys, features=features)

    def without(self, failed: Collection[int]) -> Edit:
        """The edit without the factor columns, the keys and the requests of the given indices.

        Raises:
            ValueError: The factors of this edit do not belong to single requests.
        """
        if not self.is_separable:
            raise ValueError("edit: its factors belong to all of its requests together")
        kept = [index for index in range(len(self.requests)) if index not in failed]
        updates, owners = {}, {}
        for name, update in self.updates.items():
            columns = [column for column, owner in enumerate(self.owners[name]) if owner not in failed]
            updates[name] = LowRankUpdate(update.B[:, columns], update.A[columns])
            owners[name] = tuple(kept.index(self.owners[name][column]) for column in columns)

        def chosen(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[index] for index in kept) if values else ()

        return Edit(
            chosen(self.requests),
            updates,
            chosen(self.probability_before),
            chosen(self.probability),
            chosen(self.steps),
            owners,
            {name: keys[kept] for name, keys in self.keys.items()},
            {name: parts[kept] for name, parts in self.features.items()},
        )


def require_finite_factors(request: EditRequest, *factors: Tensor) -> None:
    """Raise EditFailedError, naming the (first) request, where a factor of its update holds NaN or Inf."""
    if not all(bool(factor.isfinite().all()) for factor in factors):
        raise EditFailedError(f"{request.about}: its update holds NaN or Inf")


class Earlier(Mapping[str, Tensor]):
    """What stands when an edit is computed: the keys by module, (n, in), and what else editors read of it."""

    @property
    def features(self) -> Mapping[str, Tensor]:
        """Running statistics of all `Edit.features` that stand, merged in their order, (2, 1 + in + out) float64."""
        return {}

    @property
    def owed(self) -> Mapping[str, LowRankUpdate]:
        """What the restraint has taken of earlier updates and this edit puts back beside its own, by module."""
        return {}


@dataclass(frozen=True)
class Prepared:
    """What an editor learns of a model before the first edit, and keeps for all of them.

    Args:
        layers: The layers that are edited.
        contexts: Prefixes; the first is empty.
        statistics: Second moments of the layers' inputs, or None.
        solving: Where the editor's systems are solved, and how what is kept of them lies.
        features: Running statistics that the edits' own are merged behind, by module, as in `Earlier.features`.
        anchor: Norm that values are scaled to, where the editor anchors them; see `anchoring.anchor_norm`.
        scales: Root mean square of what each module gives, by its name, for editors whose steps are measured by it.
    """

    layers: tuple[int, ...]
    contexts: tuple[str, ...] = ("",)
    statistics: SecondMoments | None = None
    solving: Solving = field(default_factory=Solving)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    anchor: float | None = None
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made at the first call and kept: factors of matrices that do not change.

        Args:
            key: Names all that the result depends on beside this object: the editor, its hyperparameters that enter,
                the module. Editors that share this object then never get each other's.
        """
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class Editor(ABC):
    """An editing method: turns requests into low-rank updates and never changes the model.

    A subclass declares the class attributes and the dataclass of its hyperparameters.

    Args:
        hyperparameters: An instance of ``hyperparameters_class``; the published defaults if not given.
        values: Fields that differ from it, as in ``MEMIT(layers=[13, 14, 15, 16, 17])``.

    Raises:
        ValueError: A field is unknown, or a value does not fit.
    """

    name: ClassVar[str]
    pretty_name: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    url: ClassVar[str]
    hyperparameters_class: ClassVar[type]
    searches_values: ClassVar[bool] = False
    """Whether it searches v* in passes over a part of the model."""
    edits_experts: ClassVar[bool] = False
    """Whether it edits the routed experts of a mixture; a field ``experts`` of its hyperparameters chooses them also
    where there is a shared one."""
    needs_subject: ClassVar[bool] = True
    """Whether a request must name the subject that its prompt is about."""
    published_rules: ClassVar[Mapping[str, Any]] = {"second_try": False}
    """What differs from the defaults in the published method, where a model's own file does not say otherwise."""

    def __init__(self, hyperparameters: Any = None, **values: Any) -> None:
        given = self.hyperparameters_class() if hyperparameters is None else hyperparameters
        if not isinstance(given, self.hyperparameters_class):
            raise ValueError(
                f"hyperparameters: {type(given).__name__} is given, {self.name} accepts "
                f"{self.hyperparameters_class.__name__}"
            )
        self.hyperparameters = with_values(self.name, given, values)

    @classmethod
    def automatic(cls, model: Any, experts: str = SHARED) -> dict[str, Any]:
        """Hyperparameters for this model: what was published for it, else what `adapted` says."""
        found = preset(cls.name, model)
        return cls.adapted(model, experts) if found is None else dict(found.values)

    @classmethod
    def published(cls, model: Any) -> dict[str, Any]:
        """Hyperparameters as published: the file's for this model, or else the defaults; one try for each edit."""
        found = preset(cls.name, model)
        return {**cls.published_rules, **({} if found is None else found.values)}

    @classmethod
    def adapted(cls, model: Any, experts: str = SHARED) -> dict[str, Any]:
        """Hyperparameters that differ from the defaults for a model that nothing was published for.

        Args:
            model: The model.
            experts: Which ones are edited where it is a mixture, "shared" or "routed".
        """
        return {}

    def layers(self, model: Any) -> tuple[int, ...]:
        """The layers that this editor changes in ``model``, in ascending order.

        Where none are given they are the default ones, or as many up to the editable layer that is nearest to the last.

        Raises:
            UnsupportedModelError: The model has no such layer, or it has no MLP that can be edited.
        """
        given: tuple[int, ...] | None = self.hyperparameters.layers
        if given is not None:
            return tuple(self._outputs(model, given))
        wanted = self.default_layers(len(decoder_blocks(model)))
        return _nearest(wanted, list(self._outputs(model)))

    def _outputs(self, model: Any, layers: Sequence[int] | None = None) -> dict[int, str]:
        try:
            return mlp_output_modules(model, layers, experts=self.experts)
        except UnsupportedModelError as error:
            able = ", ".join(sorted(name for name, one in EDITORS.items() if one.edits_experts))
            if self.edits_experts or "experts" not in str(error):
                raise
            raise UnsupportedModelError(f"{error}, by {self.name}; {able} edit experts that are fused") from None

    def admitted(self, model: Any) -> tuple[int, ...]:
        """`layers`, after a look in a few short passes whether this editor can edit them.

        Raises:
            UnsupportedModelError: The model or a layer cannot be edited; the message says why.
        """
        layers = self.layers(model)
        experts = self.experts or SHARED
        require_text_decoder(model, layers, experts)
        if self.searches_values:
            require_partial_passes(model, layers[-1], experts)
        refused = refused_layers(model, experts=self.experts) if self.hyperparameters.layers is None else {}
        left_out = {
            layer: refused[layer] for layer in self.default_layers(len(decoder_blocks(model))) if layer in refused
        }
        if left_out:
            warnings.warn(f"layers: {', '.join(map(str, layers))} are edited; {listed(left_out)}")
        return layers

    @abstractmethod
    def default_layers(self, depth: int) -> tuple[int, ...]:
        """The layers of a model with ``depth`` of them, where none are given."""

    @abstractmethod
    def prepare(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, statistics: SecondMoments | None = None
    ) -> Prepared:
        """Find layers, contexts and factors for a model; done once, on the unedited model."""

    @abstractmethod
    def compute(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        prepared: Prepared,
        earlier: Mapping[str, Tensor] | None = None,
    ) -> Edit:
        """The update that makes ``requests`` hold, computed on the model as it is now.

        Args:
            requests: Edited together.
            prepared: What `prepare` gave for the unedited model.
            earlier: `Edit.keys` of all edits that stand, one under the other, for editors that keep a history; a
                session gives an `Earlier`, which knows more.
        """

    def require_prepared(self, model: Any, prepared: Prepared) -> None:
        """Raise ValueError where ``prepared`` was made for other layers than this editor changes."""
        own = self.layers(model)
        if not set(prepared.layers) <= set(own) or prepared.layers[-1:] != own[-1:]:
            raise ValueError(f"prepared: is for layers {list(prepared.layers)}, this {self.name} changes {list(own)}")

    def require_taken(self, request: EditRequest) -> None:
        """Raise InvalidRequestError where a request lacks the subject that this editor needs."""
        if self.needs_subject and request.subject is None:
            able = ", ".join(sorted(name for name, one in EDITORS.items() if not one.needs_subject))
            raise InvalidRequestError(
                f"subject: {self.name} edits at a subject's last token, and {request.about} names none; name it, or "
                f"use an editor that needs none ({able})"
            )

    @property
    def experts(self) -> str | None:
        """Which experts of a mixture it edits, as in `mlp_output_modules`: "shared" or "routed"; None for no routed."""
        return getattr(self.hyperparameters, "experts", SHARED) if self.edits_experts else None

    @property
    def needs_moments(self) -> bool:
        """Whether it solves with the second moments of the layers that it changes."""
        return False

    def stronger(self) -> Editor | None:
        """The editor with settings that push harder, for an edit that did not take.

        None where there are none, or where ``second_try`` is off.
        """
        if not getattr(self.hyperparameters, "second_try", True):
            return None
        values: dict[str, Any] = getattr(self.hyperparameters, "pushed", dict)()
        return type(self)(self.hyperparameters, **values) if values else None

    def modules(self, model: Any) -> list[str]:
        """Names of the modules that this editor changes, in the base model."""
        return changed_modules(model, self._outputs(model, self.layers(model)).values())


EDITORS: dict[str, type[Editor]] = {}


def register_editor(editor: type[Editor]) -> type[Editor]:
    """Class decorator: make an editor available to `get_editor` under its ``name``."""
    EDITORS[editor.name] = editor
    return editor


def editor_names() -> list[str]:
    """The names that `get_editor` knows."""
    return sorted(EDITORS)


def get_editor(name: str, *, model: Any = None, published: bool = False, **hyperparameters: Any) -> Editor:
    """The editor of that name with these hyperparameters; the others have their published defaults.

    Args:
        name: One of `editor_names`.
        model: Take `Editor.automatic` values for this model in place of published defaults.
        published: Take the method as published: with ``model`` the values of `Editor.published`, which do not adapt to
            small models, else the defaults with `Editor.published_rules`.
        hyperparameters: Fields of the editor's dataclass; they overrule both.

    Raises:
        ValueError: The name or a hyperparameter is unknown, or a value does not fit.
    """
    if name not in EDITORS:
        raise ValueError(f"editor: {name!r} is not one of {', '.join(editor_names())}")
    editor = EDITORS[name]
    if published:
        found = dict(editor.published_rules) if model is None else editor.published(model)
    else:
        found = {} if model is None else editor.automatic(model, hyperparameters.get("experts", SHARED))
    return editor(**{**found, **hyperparameters})


def _nearest(wanted: tuple[int, ...], editable: Sequence[int]) -> tuple[int, ...]:
    """``wanted`` where all of it is editable; else as many editable layers, up to the one nearest to its last."""
    if set(wanted) <= set(editable):
        return wanted
    last = min(editable, key=lambda layer: abs(layer - wanted[-1]))
    return tuple(layer for layer in editable if layer <= last)[-len(wanted) :]


def with_values(name: str, hyperparameters: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass of an editor's hyperparameters with these fields replaced.

    Raises:
        ValueError: A field is unknown, or a value is of another kind or does not fit.
    """
    known = [f.name for f in fields(hyperparameters)]
    hints = get_type_hints(type(hyperparameters))
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{key}: is no hyperparameter of {name}; known are {', '.join(known)}")
        check_kind(key, value, hints[key])
    return replace(hyperparameters, **values)
