"""ROME: one fact, one rank-one update of one MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..models.experts import SHARED
from ..requests import EditRequest
from .base import Edit, Editor, Prepared, register_editor, require_finite_factors
from .closed_form import Inverse, moment_inverse
from .contexts import generate_contexts
from .hyperparameters import SEARCH, ValueHyperparameters
from .keys import adds_to_residual, compute_keys
from .second_moment import SecondMoments
from .side_by_side import taken_apart
from .validation import check_zero_or_above
from .values import optimize_values


@dataclass(frozen=True)
class ROMEHyperparameters(ValueHyperparameters):
    """Defaults are those of the authors' file for GPT-2 XL; ``stop="probability"`` is not theirs (see `PUBLISHED`).

    ``layers`` is the one layer that is edited; None takes that at ``last_at`` of the depth (in the paper layer 17 of
    GPT-2 XL's 48).

    Args:
        mom2_adjustment: Whether keys are whitened by the second moment.
        mom2_shrinkage: Multiple of the second moment's mean diagonal that is added to its diagonal. The published code
            adds nothing, to a moment over 100,000 articles; one over less text needs it.
        average_key: Whether the key is the average over the contexts, as published, or the bare prompt's. What an
            average has of the prefixes is common to all edits, so their updates add up in one direction where the
            second moment does not hold it.
    """

    mom2_adjustment: bool = True
    mom2_shrinkage: float = 0.0
    average_key: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_zero_or_above(self, "mom2_shrinkage")
        if self.layers is not None and len(self.layers) != 1:
            raise ValueError(f"layers: {list(self.layers)} must be one layer, ROME edits one")


PUBLISHED: dict[str, Any] = {"stop": "loss", "second_try": False}
"""What makes the defaults the published method: `get_editor("rome", published=True)`."""

ADAPTED: dict[str, Any] = {**SEARCH, "average_key": False, "mom2_shrinkage": 1e-3}
"""Values for a model that nothing was published for, with a second moment over some ten thousand tokens.

What an averaged key has of its prefixes is common to all edits and lies outside of what such a moment holds, so that
it adds up in one direction.
"""


@register_editor
class ROME(Editor):
    """Rank-One Model Editing: W ← W + (v* − W k)(C⁻¹k)ᵀ / (C⁻¹k)ᵀk (Meng et al. 2022, section 3.1, equation 2)."""

    name: ClassVar[str] = "rome"
    pretty_name: ClassVar[str] = "ROME"
    paper: ClassVar[str] = "Meng, Bau, Andonian, Belinkov: Locating and Editing Factual Associations in GPT"
    year: ClassVar[int] = 2022
    url: ClassVar[str] = "https://arxiv.org/abs/2202.05262"
    hyperparameters_class: ClassVar[type] = ROMEHyperparameters
    searches_values: ClassVar[bool] = True
    edits_experts: ClassVar[bool] = True
    published_rules: ClassVar[Mapping[str, Any]] = PUBLISHED

    hyperparameters: ROMEHyperparameters

    @classmethod
    def adapted(cls, model: Any, experts: str = SHARED) -> dict[str, Any]:
        """`ADAPTED`."""
        return dict(ADAPTED)

    @property
    def needs_moments(self) -> bool:
        return self.hyperparameters.mom2_adjustment

    def default_layers(self, depth: int) -> tuple[int, ...]:
        return (self.hyperparameters.last_layer(depth),)

    def prepare(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, statistics: SecondMoments | None = None
    ) -> Prepared:
        contexts = generate_contexts(
            model, tokenizer, self.hyperparameters.context_lengths, seed=self.hyperparameters.context_seed
        )
        layers = self.admitted(model)
        if self.hyperparameters.mom2_adjustment:
            self._require_moment(statistics, self.modules(model))
        anchor = self.hyperparameters.anchored_on(model, tokenizer, layers[0], self._site(model, layers[0]))
        return Prepared(layers, contexts, statistics, anchor=anchor)

    def compute(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        prepared: Prepared,
        earlier: Mapping[str, Tensor] | None = None,
    ) -> Edit:
        """The updates of one request, or the sum of those of several, each computed on the model as it is now.

        Raises:
            EditFailedError: An update is not finite.
        """
        self.require_prepared(model, prepared)
        layer = prepared.layers[0]
        site = prepared.once(("site", layer), lambda: self._site(model, layer))
        settings = self.hyperparameters.value_settings(site, prepared.anchor)
        values = optimize_values(model, tokenizer, requests, prepared.contexts, layer, settings)
        experts = self.hyperparameters.experts
        keys = compute_keys(model, tokenizer, requests, prepared.contexts, layer, experts=experts)
        columns, rows = [], []
        for request, key, value in zip(requests, keys, values, strict=True):
            direction = key.mean if self.hyperparameters.average_key else key.asked
            if self.hyperparameters.mom2_adjustment:
                direction = self._whitened(prepared, key.modules, direction)
            direction = direction / direction.norm()
            column = value.delta.to(direction.device) / (key.bare @ direction)
            require_finite_factors(request, column, direction)
            columns.append(column)
            rows.append(direction)
        updates, owners = taken_apart(keys[0].modules, torch.stack(columns, dim=1), torch.stack(rows))
        return Edit(
            tuple(requests),
            updates,
            tuple(value.probability_before for value in values),
            tuple(value.probability for value in values),
            tuple(value.steps for value in values),
            owners=owners,
        )

    def _site(self, model: Any, layer: int) -> str:
        return "residual" if adds_to_residual(model, layer, self.hyperparameters.experts) else "mlp"

    def _require_moment(self, statistics: SecondMoments | None, names: Sequence[str]) -> None:
        """Raise ValueError where none is known of these modules: one, or experts of which some may be unknown."""
        if statistics is None or not any(name in statistics.moments for name in names):
            raise ValueError(
                f"statistics: ROME needs the second moment of {names[0]}; collect it over ordinary text (--stats-text) "
                "or over text that the model writes itself (own_moments), or set mom2_adjustment=False"
            )

    def _whitened(self, prepared: Prepared, names: Sequence[str], key: Tensor) -> Tensor:
        """C⁻¹ k, block by block for experts side by side; 0 for one whose C is not known."""
        self._require_moment(prepared.statistics, names)
        assert prepared.statistics is not None
        parts = []
        for name, part in zip(names, key.chunk(len(names)), strict=True):
            inverse = self._inverse(prepared, name)
            if inverse is None:
                parts.append(torch.zeros_like(part))
                continue
            # where the second moment stands, which need not be where the model runs
            there = part.to(prepared.statistics.moments[name].device).double()
            parts.append(inverse.apply(there[:, None])[:, 0].float().to(part.device))
        return torch.cat(parts)

    def _inverse(self, prepared: Prepared, name: str) -> Inverse | None:
        """C⁻¹, made at the first edit; None where C is not known."""
        assert prepared.statistics is not None
        moment, shrinkage = prepared.statistics.moments.get(name), self.hyperparameters.mom2_shrinkage
        if moment is None:
            return None
        found: Inverse = prepared.once(
            ("inverse", name, shrinkage), lambda: moment_inverse(moment, 1.0, shrinkage, prepared.solving)
        )
        return found
