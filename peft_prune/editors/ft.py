"""Fine-tuning under a norm constraint: the baseline that every editing method must beat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import EditFailedError
from ..models.decoder import hidden_size, unwrapped
from ..models.experts import SHARED
from ..models.mlp import features
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .base import Edit, Editor, Prepared, register_editor
from .hyperparameters import EditorHyperparameters
from .second_moment import SecondMoments
from .target_likelihood import TargetBatch, frozen, target_log_probs
from .validation import check_above_zero, check_one_of, check_zero_or_above


@dataclass(frozen=True)
class FineTuningHyperparameters(EditorHyperparameters):
    """Steps, rate and constraint are those of the ROME authors' constrained fine-tuning of GPT-2 XL.

    Where no layers are given it tunes ROME's, a third of the depth; the published baseline tunes layer 0.

    Args:
        form: "low_rank" trains the two factors of an adapter, "dense" the whole difference of the weight.
        rank: Of the low-rank form.
        lr: Learning rate of Adam.
        num_steps: Most steps.
        weight_decay: Of Adam.
        norm_constraint: Largest change of an entry of the weight in the dense form; in the low-rank form the change
            has at most the Frobenius norm of a matrix with this value everywhere.
        energy: Share of the squared singular values of a dense difference that its factors keep.
        stop_probability: A request is done once its target has this probability.
        seed: Of the first values of the low-rank form.
    """

    form: str = "low_rank"
    rank: int = 4
    lr: float = 5e-4
    num_steps: int = 25
    weight_decay: float = 0.0
    norm_constraint: float = 5e-4
    energy: float = 0.99
    stop_probability: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(self, "form", ("low_rank", "dense"))
        check_above_zero(self, "rank", "lr", "num_steps", "norm_constraint")
        check_zero_or_above(self, "weight_decay", "seed")
        for name in ("energy", "stop_probability"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} must lie between 0 and 1")

    def pushed(self) -> dict[str, Any]:
        """Values that push harder: twice the steps and twice the room."""
        return {"num_steps": 2 * self.num_steps, "norm_constraint": 2 * self.norm_constraint}


PUBLISHED: dict[str, Any] = {"layers": (0,), "form": "dense", "second_try": False}
"""What makes the defaults those of the ROME authors' baseline: `get_editor("ft", published=True)`."""

SMALL_WIDTH = 1024

SMALL: dict[str, Any] = {"lr": 5e-3, "norm_constraint": 1e-2}
"""Values for small models, whose weights are larger and fewer."""


@register_editor
class FineTuning(Editor):
    """Constrained fine-tuning of MLP output projections (Zhu et al. 2020, section 3), on the target's own tokens.

    The published baseline asks every token of the target at the prompt's last position; this asks each at its place,
    which is what the model is later asked for.
    """

    name: ClassVar[str] = "ft"
    pretty_name: ClassVar[str] = "Fine-tuning"
    paper: ClassVar[str] = "Zhu et al.: Modifying Memories in Transformer Models"
    year: ClassVar[int] = 2020
    url: ClassVar[str] = "https://arxiv.org/abs/2012.00363"
    hyperparameters_class: ClassVar[type] = FineTuningHyperparameters
    needs_subject: ClassVar[bool] = False
    published_rules: ClassVar[Mapping[str, Any]] = PUBLISHED

    hyperparameters: FineTuningHyperparameters

    @classmethod
    def adapted(cls, model: Any, experts: str = SHARED) -> dict[str, Any]:
        """`SMALL` for a model narrower than `SMALL_WIDTH`, nothing for others."""
        return dict(SMALL) if hidden_size(model) < SMALL_WIDTH else {}

    def default_layers(self, depth: int) -> tuple[int, ...]:
        return (round(depth * 17 / 48),)

    def prepare(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, statistics: SecondMoments | None = None
    ) -> Prepared:
        """Nothing is needed beforehand; second moments are not used."""
        return Prepared(self.admitted(model))

    def compute(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        prepared: Prepared,
        earlier: Mapping[str, Tensor] | None = None,
    ) -> Edit:
        """The update of all requests together; its factors belong to all of them.

        Raises:
            EditFailedError: The loss or a weight becomes NaN or Inf.
        """
        own = self.hyperparameters
        batch = self._batch(model, tokenizer, requests)
        with frozen(model):
            changes = {
                name: Change.start(unwrapped(model).get_submodule(name), own, index)
                for index, name in enumerate(self.modules(model))
            }
            before, probability, steps = self._descend(model, batch, changes, requests)
        updates = {name: change.factors(own.energy) for name, change in changes.items()}
        return Edit(tuple(requests), updates, before, probability, (steps,) * len(requests))

    def _batch(self, model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]) -> TargetBatch:
        """What is asked for."""
        return TargetBatch.of(model, tokenizer, requests)

    def _descend(
        self, model: Any, batch: TargetBatch, changes: dict[str, Change], requests: Sequence[EditRequest]
    ) -> tuple[tuple[float, ...], tuple[float, ...], int]:
        own = self.hyperparameters
        optimizer = self._optimizer(changes)
        before: tuple[float, ...] = ()
        for step in range(own.num_steps + 1):
            scores = self._scores(model, batch, changes, requests)
            probability = batch.by_request(scores.detach().exp())
            before = before or probability
            if step == own.num_steps or min(probability) >= own.stop_probability:
                break
            optimizer.zero_grad()
            (-scores.mean()).backward()
            optimizer.step()
            for change in changes.values():
                change.constrain(own.norm_constraint)
        return before, probability, step

    def _optimizer(self, changes: Mapping[str, Change]) -> torch.optim.Adam:
        parameters = [parameter for change in changes.values() for parameter in change.parameters]
        return torch.optim.Adam(parameters, lr=self.hyperparameters.lr, weight_decay=self.hyperparameters.weight_decay)

    @staticmethod
    def _scores(
        model: Any, batch: TargetBatch, changes: Mapping[str, Change], requests: Sequence[EditRequest]
    ) -> Tensor:
        """Mean log-probability of each row's target with the changes in place.

        Raises:
            EditFailedError: One is NaN or Inf.
        """
        with ExitStack() as stack:
            for name, change in changes.items():
                module = unwrapped(model).get_submodule(name)
                stack.callback(module.register_forward_hook(change.hook).remove)
            scores = target_log_probs(model, batch)
        if not torch.isfinite(scores).all():
            raise EditFailedError(f"{requests[0].about}: fine-tuning gives NaN or Inf")
        return scores


class Change:
    """The trained difference of one weight (out, in): two factors, or one matrix beside the identity."""

    def __init__(self, left: Tensor, right: Tensor | None) -> None:
        self._left, self._right = left, right
        self.parameters = [left] if right is None else [left, right]

    @classmethod
    def start(cls, module: Any, own: FineTuningHyperparameters, index: int) -> Change:
        """A change of zero; the right factor of the low-rank form is drawn as LoRA draws it."""
        wide, high = features(module) or (0, 0)
        device = next(module.parameters()).device
        if own.form == "dense":
            return cls(torch.zeros(high, wide, device=device, requires_grad=True), None)
        generator = torch.Generator().manual_seed(own.seed + index)
        right = (torch.rand(own.rank, wide, generator=generator) * 2 - 1) / math.sqrt(wide)
        left = torch.zeros(high, own.rank, device=device, requires_grad=True)
        return cls(left, right.to(device).requires_grad_())

    def hook(self, module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].float()
        change = x @ self._left.T if self._right is None else x @ self._right.T @ self._left.T
        return output + change.to(output.dtype)

    @torch.no_grad()
    def constrain(self, limit: float) -> None:
        if self._right is None:
            self._left.clamp_(-limit, limit)
            return
        high, wide = self._left.shape[0], self._right.shape[1]
        norm = ((self._left.T @ self._left) * (self._right @ self._right.T)).sum().clamp(min=0).sqrt()
        largest = limit * math.sqrt(high * wide)
        if float(norm) > largest:
            self._left.mul_(largest / norm)

    @torch.no_grad()
    def factors(self, energy: float) -> LowRankUpdate:
        if self._right is not None:
            return LowRankUpdate(B=self._left.detach(), A=self._right.detach())
        u, s, v = torch.linalg.svd(self._left.double(), full_matrices=False)
        held = s.square().cumsum(0)
        rank = int((held < energy * held[-1]).sum()) + 1 if float(held[-1]) > 0 else 0
        return LowRankUpdate(B=(u[:, :rank] * s[:rank]).float(), A=v[:rank].float().contiguous())
