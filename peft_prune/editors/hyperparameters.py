"""Hyperparameters that several editors share, under the names of the published files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .values import ValueSettings

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ValueHyperparameters:
    """How v* is searched.

    Args:
        layers: Layers that are edited, in order; None picks them by the editor's rule.
        v_lr: Learning rate of the value optimisation.
        v_num_grad_steps: Its most steps.
        v_weight_decay: Its weight decay.
        clamp_norm_factor: Limit of the change of the value, as a multiple of its norm.
        kl_factor: Weight of the KL divergence that keeps what the subject is.
        context_lengths: Pairs of tokens and count of the sampled prefixes.
        context_seed: Of the sampling.
        stop: "probability", or "loss" as published.
        stop_probability: Every context must give the target this probability.
        stop_loss: The published threshold.
        autocast: "bfloat16" or "float16" for the forward passes of the optimisation; None for the model's own dtype.
    """

    layers: tuple[int, ...] | None = None
    v_lr: float = 0.5
    v_num_grad_steps: int = 20
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    kl_factor: float = 0.0625
    context_lengths: tuple[tuple[int, int], ...] = ((5, 10), (10, 10))
    context_seed: int = 0
    stop: str = "probability"
    stop_probability: float = 0.8
    stop_loss: float = 0.05
    autocast: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", checked_layers(self.layers))
        object.__setattr__(self, "context_lengths", _checked_pairs(self.context_lengths))
        if self.stop not in ("probability", "loss"):
            raise ValueError(f"stop: {self.stop!r} is not one of probability, loss")
        if not 0 < self.stop_probability < 1:
            raise ValueError(f"stop_probability: {self.stop_probability} must lie between 0 and 1")
        for name in ("v_lr", "v_num_grad_steps", "clamp_norm_factor", "stop_loss"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0")
        if self.autocast is not None and self.autocast not in AUTOCAST:
            raise ValueError(f"autocast: {self.autocast!r} is not one of {', '.join(AUTOCAST)}")

    def pushed(self) -> dict[str, Any]:
        """Values that push harder: twice the steps, half as far again, and half of what is missing to certainty."""
        return {
            "v_num_grad_steps": 2 * self.v_num_grad_steps,
            "clamp_norm_factor": 1.5 * self.clamp_norm_factor,
            "stop_probability": (1 + self.stop_probability) / 2,
            "stop_loss": self.stop_loss / 2,
        }

    def value_settings(self, site: str) -> ValueSettings:
        """Settings of the search, with the vector added at the output of the MLP or of the block."""
        return ValueSettings(
            learning_rate=self.v_lr,
            steps=self.v_num_grad_steps,
            weight_decay=self.v_weight_decay,
            clamp_factor=self.clamp_norm_factor,
            kl_factor=self.kl_factor,
            stop=self.stop,
            stop_probability=self.stop_probability,
            stop_loss=self.stop_loss,
            site=site,
            autocast=None if self.autocast is None else AUTOCAST[self.autocast],
        )


def _checked_pairs(given: Any) -> tuple[tuple[int, int], ...]:
    pairs = given if isinstance(given, (list, tuple)) else (None,)
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or any(type(n) is not int or n < 1 for n in pair):
            raise ValueError(f"context_lengths: {given!r} must be pairs of whole numbers of at least 1")
    return tuple((length, count) for length, count in pairs)


def checked_layers(layers: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Layers as a tuple, or None as it is.

    Raises:
        ValueError: A layer is no whole number or comes twice, or they are not in ascending order.
    """
    if layers is None:
        return None
    found = tuple(layers) if isinstance(layers, (list, tuple)) else (layers,)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in found):
        raise ValueError(f"layers: {layers!r} must be whole numbers")
    if not found or list(found) != sorted(set(found)):
        raise ValueError(f"layers: {list(found)} must be different layers in ascending order")
    return found
