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

from ..errors import EditFailedError, UnsupportedModelError
from ..models.decoder import unwrapped
from ..models.experts import SHARED
from ..models.mlp import features
from ..models.weights import root_mean_square
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .base import Edit, Editor, Prepared, register_editor
from .hyperparameters import EditorHyperparameters
from .second_moment import SecondMoments
from .target_likelihood import TargetBatch, frozen, target_log_probs
from .validation import check_above_zero, check_one_of, check_zero_or_above

STEP = 0.16
"""Of the right factor's largest entry, by which a step moves each: more, and what it began with is gone in a few."""


@dataclass(frozen=True)
class FineTuningHyperparameters(EditorHyperparameters):
    """Steps, rate and constraint are those of the ROME authors' constrained fine-tuning of GPT-2 XL.

    Where no layers are given it tunes ROME's published place, 17/48 of the depth; the published baseline tunes layer 0.

    Args:
        form: "low_rank" trains the two factors of an adapter, "dense" the whole difference of the weight.
        rank: Of the low-rank form.
        lr: Learning rate of Adam; None follows from the form and the weight's width, see `rate`.
        num_steps: Most steps.
        weight_decay: Of Adam.
        norm_constraint: Largest change of an entry of the weight in the dense form; in the low-rank form the change
            has at most the Frobenius norm of a matrix with this value everywhere. None follows from the weight, by
            ``relative_norm``.
        relative_norm: ``norm_constraint`` as a multiple of rms(W) / √inputs, where none is given.
        energy: Share of the squared singular values of a dense difference that its factors keep.
        stop_probability: A request is done once its target has this probability.
        seed: Of the first values of the low-rank form.
    """

    form: str = "low_rank"
    rank: int = 4
    lr: float | None = 5e-4
    num_steps: int = 25
    weight_decay: float = 0.0
    norm_constraint: float | None = 5e-4
    relative_norm: float = 2.0
    energy: float = 0.99
    stop_probability: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(self, "form", ("low_rank", "dense"))
        check_above_zero(self, "rank", "lr", "num_steps", "norm_constraint", "relative_norm")
        check_zero_or_above(self, "weight_decay", "seed")
        for name in ("energy", "stop_probability"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} must lie between 0 and 1")

    def pushed(self) -> dict[str, Any]:
        """Values that push harder: twice the steps and twice the room."""
        room = {"relative_norm": 2 * self.relative_norm}
        if self.norm_constraint is not None:
            room = {"norm_constraint": 2 * self.norm_constraint}
        return {"num_steps": 2 * self.num_steps, **room}

    def limit(self, size: float, inputs: int) -> float:
        """``norm_constraint``, or what follows from a weight.

        The least change that moves an output y = W k by δ at one key has the Frobenius norm ‖δ‖ / ‖k‖. Where the
        entries of W are independent of each other, ‖y‖ is rms(W) √outputs ‖k‖, so that this is a matrix with
        ‖δ‖ / ‖y‖ · rms(W) / √inputs everywhere.

        Args:
            size: Root mean square of the weight's entries.
            inputs: How many inputs it has.
        """
        return self.relative_norm * size / math.sqrt(inputs) if self.norm_constraint is None else self.norm_constraint

    def rate(self, limit: float, inputs: int) -> float:
        """``lr``, or what follows from the form.

        In the low-rank form each step moves an entry of the right factor by `STEP` of the largest that it begins with,
        1 / √inputs; in the dense one ``num_steps`` steps in one direction reach the limit.

        Args:
            limit: Of the change.
            inputs: How many inputs the weight has.
        """
        if self.lr is not None:
            return self.lr
        return STEP / math.sqrt(inputs) if self.form == "low_rank" else limit / self.num_steps


PUBLISHED: dict[str, Any] = {"layers": (0,), "form": "dense", "second_try": False}
"""What makes the defaults those of the ROME authors' baseline: `get_editor("ft", published=True)`."""

ADAPTED: dict[str, Any] = {"lr": None, "norm_constraint": None}
"""For a model that nothing was published for: both follow from the weight."""


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
        """`ADAPTED`."""
        return dict(ADAPTED)

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
                name: Change.start(unwrapped(model).get_submodule(name), own, index, self._size(model, name, prepared))
                for index, name in enumerate(self.modules(model))
            }
            before, probability, steps = self._descend(model, batch, changes, requests)
        updates = {name: change.factors(own.energy) for name, change in changes.items()}
        return Edit(tuple(requests), updates, before, probability, (steps,) * len(requests))

    def _size(self, model: Any, name: str, prepared: Prepared) -> float:
        """Root mean square of the weight's entries; of no account where nothing follows from it."""
        if self.hyperparameters.norm_constraint is not None:
            return 1.0
        found: float | None = prepared.once(("size", name), lambda: root_mean_square(model, name))
        if found is None:
            raise UnsupportedModelError(f"{name}: its weight cannot be read; give norm_constraint")
        return found

    def _batch(self, model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]) -> TargetBatch:
        """What is asked for."""
        return TargetBatch.of(model, tokenizer, requests)

    def _descend(
        self, model: Any, batch: TargetBatch, changes: dict[str, Change], requests: Sequence[EditRequest]
    ) -> tuple[tuple[float, ...], tuple[float, ...], int]:
        own, optimizer = self.hyperparameters, self._optimizer(changes)
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
                change.constrain()
        return before, probability, step

    def _optimizer(self, changes: Mapping[str, Change]) -> torch.optim.Adam:
        groups = [{"params": change.parameters, "lr": change.rate} for change in changes.values()]
        return torch.optim.Adam(groups, weight_decay=self.hyperparameters.weight_decay)

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

    def __init__(self, left: Tensor, right: Tensor | None, limit: float, rate: float) -> None:
        self._left, self._right, self._limit = left, right, limit
        self.parameters = [left] if right is None else [left, right]
        self.rate = rate

    @classmethod
    def start(cls, module: Any, own: FineTuningHyperparameters, index: int, size: float) -> Change:
        """A change of zero; the right factor of the low-rank form is drawn as LoRA draws it."""
        wide, high = features(module) or (0, 0)
        device = next(module.parameters()).device
        limit = own.limit(size, wide)
        rate = own.rate(limit, wide)
        if own.form == "dense":
            return cls(torch.zeros(high, wide, device=device, requires_grad=True), None, limit, rate)
        generator = torch.Generator().manual_seed(own.seed + index)
        right = (torch.rand(own.rank, wide, generator=generator) * 2 - 1) / math.sqrt(wide)
        left = torch.zeros(high, own.rank, device=device, requires_grad=True)
        return cls(left, right.to(device).requires_grad_(), limit, rate)

    def hook(self, module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].float()
        change = x @ self._left.T if self._right is None else x @ self._right.T @ self._left.T
        return output + change.to(output.dtype)

    @torch.no_grad()
    def constrain(self) -> None:
        limit = self._limit
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
