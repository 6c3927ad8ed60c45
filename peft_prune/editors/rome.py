"""ROME: one fact, one rank-one update of one MLP."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from ..architecture import hidden_size, mlp_output_module, mlp_output_modules
from ..errors import EditFailedError
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .base import Edit, Editor, Prepared, register_editor
from .contexts import generate_contexts
from .keys import compute_keys
from .second_moment import SecondMoments, inverse_applied
from .values import ValueSettings, optimize_values


@dataclass(frozen=True)
class ROMEHyperparameters:
    """Defaults are those of the authors' file for GPT-2 XL; ``stop="probability"`` is not theirs (see `PUBLISHED`).

    Args:
        layers: The one layer that is edited; None picks the middle of the first half (layer 17 of GPT-2 XL's 48 in the
            paper, about a third of the depth).
        v_lr: Learning rate of the value optimisation.
        v_num_grad_steps: Its most steps.
        v_weight_decay: Its weight decay.
        clamp_norm_factor: Limit of the change of the value, as a multiple of its norm.
        kl_factor: Weight of the KL divergence that keeps what the subject is.
        mom2_adjustment: Whether keys are whitened by the second moment.
        mom2_shrinkage: Multiple of the second moment's mean diagonal that is added to its diagonal. The published code
            adds nothing, to a moment over 100,000 articles; one over less text needs it.
        average_key: Whether the key is the average over the contexts, as published, or the bare prompt's. What an
            average has of the prefixes is common to all edits, so their updates add up in one direction where the
            second moment does not hold it.
        context_lengths: Pairs of tokens and count of the sampled prefixes.
        context_seed: Of the sampling.
        stop: "probability", or "loss" as published.
        stop_probability: Every context must give the target this probability.
        stop_loss: The published threshold.
    """

    layers: tuple[int, ...] | None = None
    v_lr: float = 0.5
    v_num_grad_steps: int = 20
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    kl_factor: float = 0.0625
    mom2_adjustment: bool = True
    mom2_shrinkage: float = 0.0
    average_key: bool = True
    context_lengths: tuple[tuple[int, int], ...] = ((5, 10), (10, 10))
    context_seed: int = 0
    stop: str = "probability"
    stop_probability: float = 0.8
    stop_loss: float = 0.05

    def __post_init__(self) -> None:
        if self.layers is not None:
            layers = (self.layers,) if isinstance(self.layers, int) else tuple(self.layers)
            if len(layers) != 1:
                raise ValueError(f"layers: {list(layers)} must be one layer, ROME edits one")
            object.__setattr__(self, "layers", layers)
        if self.stop not in ("probability", "loss"):
            raise ValueError(f"stop: {self.stop!r} is not one of probability, loss")
        if not 0 < self.stop_probability < 1:
            raise ValueError(f"stop_probability: {self.stop_probability} must lie between 0 and 1")
        for name in ("v_lr", "v_num_grad_steps", "clamp_norm_factor", "stop_loss"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0")


PUBLISHED: dict[str, Any] = {"stop": "loss"}
"""What makes the defaults the published method: `get_editor("rome", **PUBLISHED)`."""

SMALL_WIDTH = 1024
"""Hidden size below which the published values, found for widths from 1,024 to 4,096, give way to `SMALL`."""

SMALL: dict[str, Any] = {
    "v_lr": 0.2,
    "v_num_grad_steps": 60,
    "stop_probability": 0.9,
    "average_key": False,
    "mom2_shrinkage": 3e-3,
}
"""Values for small models, from 60 edits of a model 256 wide: smaller steps end at smaller updates."""


@register_editor
class ROME(Editor):
    """Rank-One Model Editing: W ← W + (v* − W k)(C⁻¹k)ᵀ / (C⁻¹k)ᵀk (Meng et al. 2022, section 3.1, equation 2)."""

    name: ClassVar[str] = "rome"
    pretty_name: ClassVar[str] = "ROME"
    paper: ClassVar[str] = "Meng, Bau, Andonian, Belinkov: Locating and Editing Factual Associations in GPT"
    year: ClassVar[int] = 2022
    url: ClassVar[str] = "https://arxiv.org/abs/2202.05262"
    hyperparameters_class: ClassVar[type] = ROMEHyperparameters

    hyperparameters: ROMEHyperparameters

    @classmethod
    def automatic(cls, model: Any) -> dict[str, Any]:
        """`SMALL` for a model narrower than `SMALL_WIDTH`, nothing for others."""
        return dict(SMALL) if hidden_size(model) < SMALL_WIDTH else {}

    def layers(self, model: Any) -> tuple[int, ...]:
        """The layers that this editor changes in ``model``."""
        if self.hyperparameters.layers is not None:
            mlp_output_module(model, self.hyperparameters.layers[0])
            return self.hyperparameters.layers
        return (round(len(mlp_output_modules(model)) * 17 / 48),)

    def prepare(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, statistics: SecondMoments | None = None
    ) -> Prepared:
        contexts = generate_contexts(
            model, tokenizer, self.hyperparameters.context_lengths, seed=self.hyperparameters.context_seed
        )
        layers = self.layers(model)
        name, _ = mlp_output_module(model, layers[0])
        if self.hyperparameters.mom2_adjustment and (statistics is None or name not in statistics.moments):
            raise ValueError(
                f"statistics: ROME needs the second moment of {name}; collect it over ordinary text, or set "
                "mom2_adjustment=False"
            )
        return Prepared(layers, contexts, statistics)

    def compute(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], prepared: Prepared
    ) -> Edit:
        """The updates of one request, or the sum of those of several, each computed on the model as it is now.

        Raises:
            EditFailedError: An update is not finite.
        """
        layer = prepared.layers[0]
        name, _ = mlp_output_module(model, layer)
        values = optimize_values(model, tokenizer, requests, prepared.contexts, layer, self._value_settings())
        keys = compute_keys(model, tokenizer, requests, prepared.contexts, layer)
        columns, rows = [], []
        for request, key, value in zip(requests, keys, values, strict=True):
            direction = key.mean if self.hyperparameters.average_key else key.bare
            if self.hyperparameters.mom2_adjustment and prepared.statistics is not None:
                moment = prepared.statistics.moments[name].to(direction.device)
                direction = inverse_applied(moment, direction, self.hyperparameters.mom2_shrinkage)
            direction = direction / direction.norm()
            column = value.delta / (key.bare @ direction)
            if not (torch.isfinite(column).all() and torch.isfinite(direction).all()):
                raise EditFailedError(f"subject {request.subject!r}: its update holds NaN or Inf")
            columns.append(column)
            rows.append(direction)
        update = LowRankUpdate(B=torch.stack(columns, dim=1), A=torch.stack(rows))
        return Edit(
            tuple(requests),
            {name: update},
            tuple(value.probability_before for value in values),
            tuple(value.probability for value in values),
            tuple(value.steps for value in values),
        )

    def _value_settings(self) -> ValueSettings:
        own = dataclasses.asdict(self.hyperparameters)
        return ValueSettings(
            learning_rate=own["v_lr"],
            steps=own["v_num_grad_steps"],
            weight_decay=own["v_weight_decay"],
            clamp_factor=own["clamp_norm_factor"],
            kl_factor=own["kl_factor"],
            stop=own["stop"],
            stop_probability=own["stop_probability"],
            stop_loss=own["stop_loss"],
        )
