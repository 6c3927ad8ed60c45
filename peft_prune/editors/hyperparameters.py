"""Hyperparameters that several editors share, under the names of the published files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..models.experts import CHOICES, SHARED
from .anchoring import anchor_norm
from .validation import (
    check_above_zero,
    check_kinds,
    check_one_of,
    check_share,
    check_zero_or_above,
    checked_context_lengths,
    checked_layers,
)
from .values import ValueSettings

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


SEARCH: dict[str, Any] = {
    "v_optimizer": "polyak",
    "v_num_grad_steps": 31,  # 30 updates; most requests arrive in 6 to 12
    "clamp_norm_factor": 6.0,
    "stop_probability": 0.95,
    "last_at": 1 / 6,
}
"""Where and how v* is searched in a model that nothing was published for: nothing here depends on its width."""


@dataclass(frozen=True)
class EditorHyperparameters:
    """What every editor has.

    Args:
        layers: Layers that are edited, in order; None picks them by the editor's rule.
        second_try: Whether an edit that did not take may be tried once more with `Editor.stronger`. The published
            methods try once.
    """

    layers: tuple[int, ...] | None = None
    second_try: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", checked_layers(self.layers))
        check_kinds(self)


@dataclass(frozen=True)
class ValueHyperparameters(EditorHyperparameters):
    """How v* is searched.

    Args:
        v_optimizer: "adam" as published, or "polyak", whose steps are as long as the loss has still to fall and need no
            rate.
        v_lr: Learning rate of the value optimisation by Adam.
        v_longest_step: The longest of Polyak's steps, as a multiple of the norm of the value.
        v_num_grad_steps: Most looks at the loss, as in the published code: the last one is followed by no update, so
            that 20 steps are 19 updates.
        v_weight_decay: Its weight decay.
        clamp_norm_factor: Limit of the change of the value, as a multiple of its norm.
        kl_factor: Weight of the KL divergence that keeps what the subject is.
        context_lengths: Pairs of tokens and count of the sampled prefixes.
        context_seed: Of the sampling.
        stop: "probability", or "loss" as published.
        stop_probability: Every context must give the target this probability.
        stop_loss: The published threshold.
        autocast: "bfloat16" or "float16" for the forward passes of the optimisation; None for the model's own dtype.
        max_tokens: Most tokens of the requests whose values are searched for together, padding included, one request
            at least; what limits the memory of the search. None for no limit.
        norm_anchor: Stand-ins over which the norm is taken that every v* is scaled to (norm anchoring, Liu et al. 2026,
            arXiv 2602.02543); 0 for no anchor, 1000 there. They are searched for on the unedited model, once.
        anchor_limit: A v* that is longer than this multiple of that norm is not written; 2 is published for editors of
            several layers, 5 for ROME.
        last_at: Where no layers are given, the last one that is edited, at whose output v* is sought, as a share of the
            depth; 17/48 is published for GPT-2 XL.
        experts: What is edited in a mixture of experts: "shared", the expert that all tokens share, and the routed ones
            where there is none; "routed", the routed ones also beside a shared one.
    """

    v_optimizer: str = "adam"
    v_lr: float = 0.5
    v_longest_step: float = 0.15
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
    max_tokens: int | None = None
    norm_anchor: int = 0
    anchor_limit: float = 2.0
    last_at: float = 17 / 48
    experts: str = SHARED

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "context_lengths", checked_context_lengths(self.context_lengths))
        check_one_of(self, "stop", ("probability", "loss"))
        check_one_of(self, "v_optimizer", ("adam", "polyak"))
        check_one_of(self, "autocast", tuple(AUTOCAST))
        check_one_of(self, "experts", CHOICES)
        check_share(self, "stop_probability", "last_at")
        check_above_zero(self, "v_lr", "v_longest_step", "clamp_norm_factor", "stop_loss", "max_tokens", "anchor_limit")
        check_zero_or_above(self, "v_weight_decay", "kl_factor", "context_seed", "norm_anchor")
        if self.v_num_grad_steps < 2:
            raise ValueError(
                f"v_num_grad_steps: {self.v_num_grad_steps} must be at least 2; the last of them makes no update"
            )

    def last_layer(self, depth: int) -> int:
        """The layer at ``last_at`` of the depth."""
        return round(depth * self.last_at)

    def pushed(self) -> dict[str, Any]:
        """Values that push harder: twice the steps, half as far again, and half of what is missing to certainty."""
        return {
            "v_num_grad_steps": 2 * self.v_num_grad_steps,
            "clamp_norm_factor": 1.5 * self.clamp_norm_factor,
            "stop_probability": (1 + self.stop_probability) / 2,
            "stop_loss": self.stop_loss / 2,
        }

    def value_settings(self, site: str, anchor: float | None = None) -> ValueSettings:
        """Settings of the search, with the vector added at the output of the MLP or of the block.

        Raises:
            ValueError: An anchor is wanted, and its norm is not known.
        """
        if self.norm_anchor and anchor is None:
            raise ValueError("prepared: holds no reference norm, which norm_anchor scales values to")
        return ValueSettings(
            optimizer=self.v_optimizer,
            learning_rate=self.v_lr,
            longest_step=self.v_longest_step,
            steps=self.v_num_grad_steps - 1,
            weight_decay=self.v_weight_decay,
            clamp_factor=self.clamp_norm_factor,
            kl_factor=self.kl_factor,
            stop=self.stop,
            stop_probability=self.stop_probability,
            stop_loss=self.stop_loss,
            site=site,
            autocast=None if self.autocast is None else AUTOCAST[self.autocast],
            max_tokens=self.max_tokens,
            anchor=anchor if self.norm_anchor else None,
            anchor_limit=self.anchor_limit,
            experts=self.experts,
        )

    def anchored_on(self, model: Any, tokenizer: Any, layer: int, site: str) -> float | None:
        """The reference norm of ``norm_anchor``, on the unedited model; None without one."""
        if not self.norm_anchor:
            return None
        settings = replace(self, norm_anchor=0).value_settings(site)
        return anchor_norm(model, tokenizer, layer, settings, self.norm_anchor)
