"""LocFT-BF: fine-tuning of one late MLP output, epoch by epoch over all edits of a batch in mini-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import UnsupportedModelError
from ..models.experts import SHARED
from ..requests import EditRequest
from .base import Prepared, register_editor
from .ft import Change, FineTuning, FineTuningHyperparameters
from .target_likelihood import TargetBatch
from .validation import check_above_zero


@dataclass(frozen=True)
class LocFTBFHyperparameters(FineTuningHyperparameters):
    """Defaults are those of the authors' file for Llama-3 8B; ``num_steps`` counts epochs.

    ``norm_constraint`` and ``stop_probability`` bound nothing: the change ends with the number of epochs.

    Args:
        mini_batch: Rows of one step.
        stop_loss: A mini-batch whose loss is below takes no step, and an epoch whose mean is below is the last.
        end: Whether each target is followed by the token that ends a text, as published. Off is for targets that
            stand within a sentence.
    """

    form: str = "dense"
    mini_batch: int = 100
    stop_loss: float = 1e-2
    end: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "mini_batch", "stop_loss")

    def pushed(self) -> dict[str, Any]:
        """Values that push harder: twice the epochs."""
        return {"num_steps": 2 * self.num_steps}


ADAPTED: dict[str, Any] = {"form": "low_rank", "rank": 16, "mini_batch": 16, "end": False}
ADAPTED |= {"lr": None, "norm_constraint": None}
"""Where nothing was published: factors of an adapter, targets within a sentence, a rate by the width."""


@register_editor
class LocFTBF(FineTuning):
    """Localized breadth-first fine-tuning (Yang et al. 2026; fine-tune.py of ICT-STAR/LocFT at 51db785).

    What tells it from fine-tuning edit after edit is that all edits are shuffled and gone through in mini-batches again
    and again. An editor sees the edits of one batch of a session: give all of them as one batch. Consolidation trains
    the edits of all batches together, against what the base says to other text as well.
    """

    name: ClassVar[str] = "locft_bf"
    pretty_name: ClassVar[str] = "LocFT-BF"
    paper: ClassVar[str] = "Yang, Tang, Zang, Su, Cao, Wang, Shen, Cheng, Sun: Fine-tuning Done Right in Model Editing"
    year: ClassVar[int] = 2026
    url: ClassVar[str] = "https://arxiv.org/abs/2509.22072"
    hyperparameters_class: ClassVar[type] = LocFTBFHyperparameters
    published_rules: ClassVar[Mapping[str, Any]] = {"second_try": False}

    hyperparameters: LocFTBFHyperparameters

    @classmethod
    def adapted(cls, model: Any, experts: str = SHARED) -> dict[str, Any]:
        """`ADAPTED`."""
        return dict(ADAPTED)

    def default_layers(self, depth: int) -> tuple[int, ...]:
        return (min(depth - 1, round(depth * 22 / 32)),)  # published for Llama-3 8B: layer 22 of 32

    def _size(self, model: Any, name: str, prepared: Prepared) -> float:
        # the low-rank form's rate does not depend on it, and nothing bounds the change
        return 1.0 if self.hyperparameters.form == "low_rank" else super()._size(model, name, prepared)

    def _batch(self, model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]) -> TargetBatch:
        batch = super()._batch(model, tokenizer, requests)
        if not self.hyperparameters.end:
            return batch
        if tokenizer.eos_token_id is None:
            raise UnsupportedModelError("tokenizer: has no token that ends a text; end=False does without")
        return batch.ended(int(tokenizer.eos_token_id))

    def _descend(
        self, model: Any, batch: TargetBatch, changes: dict[str, Change], requests: Sequence[EditRequest]
    ) -> tuple[tuple[float, ...], tuple[float, ...], int]:
        own = self.hyperparameters
        optimizer, draw = self._optimizer(changes), torch.Generator().manual_seed(own.seed)
        before = self._probabilities(model, batch, changes, requests)
        epoch = 0
        while epoch < own.num_steps:
            epoch += 1
            order = torch.randperm(len(batch.ids), generator=draw).to(batch.ids.device)
            total = 0.0
            for chosen in order.split(own.mini_batch):
                loss = -self._scores(model, batch.rows(chosen), changes, requests).mean()
                total += float(loss.detach()) * len(chosen)
                if float(loss.detach()) >= own.stop_loss:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            if total / len(order) < own.stop_loss:
                break
        return before, self._probabilities(model, batch, changes, requests), epoch

    @torch.no_grad()
    def _probabilities(
        self, model: Any, batch: TargetBatch, changes: dict[str, Change], requests: Sequence[EditRequest]
    ) -> tuple[float, ...]:
        parts: list[Tensor] = [
            self._scores(model, batch.rows(chosen), changes, requests)
            for chosen in torch.arange(len(batch.ids), device=batch.ids.device).split(self.hyperparameters.mini_batch)
        ]
        return batch.by_request(torch.cat(parts).exp())
