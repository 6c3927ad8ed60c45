"""UltraEdit: one hidden state and its gradient for each token of a target, normalised by all of them so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..models.experts import SHARED
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .base import Earlier, Edit, Editor, Prepared, register_editor, require_finite_factors
from .gradients import traced
from .hyperparameters import EditorHyperparameters
from .rehearsal import Rehearsed, rehearsed
from .running import mean_and_deviation, merged, part_of
from .second_moment import SecondMoments
from .target_likelihood import TargetBatch, frozen
from .validation import check_above_zero, check_zero_or_above

AT_ONCE = 16
"""Requests that go through the model together; what is computed of one does not depend on those beside it."""

EPSILON = float(torch.finfo(torch.float32).eps)
"""Added to a standard deviation before something is divided by it, as in the published code."""


@dataclass(frozen=True)
class UltraEditHyperparameters(EditorHyperparameters):
    """``lr`` and ``ridge`` are those of the authors' file and code; they follow the model where they are None.

    Args:
        lr: η. None makes it ``step`` times the root mean square of what the layer gives, over the layer's width: a
            normalised key has about that squared norm, so that an entry of a target's output moves by about ``step``
            of such an entry.
        step: See ``lr``.
        ridge: What is added to the diagonal of HᵀH. None makes it ``relative_ridge`` times the mean squared norm of
            the hidden states so far.
        relative_ridge: See ``ridge``.
        rehearsals: Stand-ins for edits whose statistics stand before those of the first edit: pieces of texts that the
            model writes, each asked to go on with the beginning of another. 0 as published, where a few edits alone
            say nothing about what is normal: a single token has no deviation, and its edit is 0.
        rehearsal_seed: Of these texts.
    """

    lr: float | None = 1e-6
    step: float = 0.1
    ridge: float | None = 1.0
    relative_ridge: float = 0.1
    rehearsals: int = 0
    rehearsal_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "lr", "step", "ridge", "relative_ridge")
        check_zero_or_above(self, "rehearsals", "rehearsal_seed")
        if self.lr is None and self.rehearsals == 0:
            raise ValueError("lr: None needs rehearsals, by which what the layer gives is measured")

    def pushed(self) -> dict[str, Any]:
        """Values that push harder: twice the step."""
        return {"step": 2 * self.step} if self.lr is None else {"lr": 2 * self.lr}


ADAPTED: dict[str, Any] = {"lr": None, "ridge": None, "rehearsals": 64}
"""Values for a model that nothing was published for: nothing here depends on its scale."""


@register_editor
class UltraEdit(Editor):
    """ΔWᵀ = (HᵀH + I)⁻¹ Hᵀ V with vᵢ = -η ‖ĥᵢ‖² ĝᵢ (Gu et al. 2026; editor/ultraedit.py of the authors' repository).

    H holds the hidden states h at the tokens that are asked for, g is the loss's gradient by what the module gives
    there, and ĥ, ĝ are both after lifelong normalization: (z - μ) / σ entry by entry, with the running mean and
    deviation of [h, g] over all edits so far, those of the batch included. By Hᵀ (H Hᵀ + I)⁻¹ = (HᵀH + I)⁻¹ Hᵀ the
    update has one column for each token, and the system is as large as there are tokens.

    It needs no subject and no second moment. Where the authors' code pads a batch's last part with zeros, multiplies
    a variance with n - 1 in its denominator by n, and keeps one set of statistics for all modules of one shape, this
    takes the rows that there are, their exact sum of squares, and a set for each module. A gradient is of the sum over
    the rows of a mean over their tokens, so that it does not depend on the edits beside it.
    """

    name: ClassVar[str] = "ultraedit"
    pretty_name: ClassVar[str] = "UltraEdit"
    paper: ClassVar[str] = "Gu, Huang, Gu, Zhang: UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing"
    year: ClassVar[int] = 2026
    url: ClassVar[str] = "https://arxiv.org/abs/2505.14679"
    hyperparameters_class: ClassVar[type] = UltraEditHyperparameters
    needs_subject: ClassVar[bool] = False

    hyperparameters: UltraEditHyperparameters

    @classmethod
    def automatic(cls, model: Any, experts: str = SHARED) -> dict[str, Any]:
        """As for every editor, with rehearsals: the first edits of a session say nothing of what is normal."""
        return {**super().automatic(model, experts), "rehearsals": ADAPTED["rehearsals"]}

    @classmethod
    def adapted(cls, model: Any, experts: str = SHARED) -> dict[str, Any]:
        """`ADAPTED`."""
        return dict(ADAPTED)

    def default_layers(self, depth: int) -> tuple[int, ...]:
        first, last = round(depth * 18 / 28), round(depth * 26 / 28)  # published for GPT-J: layers 18 to 26 of 28
        return tuple(range(min(first, depth - 1), min(last, depth - 1) + 1))

    def prepare(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, statistics: SecondMoments | None = None
    ) -> Prepared:
        """Rehearse, where that is asked for; second moments are not used.

        Raises:
            InvalidRequestError: The model can write no text to rehearse with.
        """
        own, layers = self.hyperparameters, self.admitted(model)
        if own.rehearsals == 0:
            return Prepared(layers)
        found: Rehearsed = rehearsed(model, tokenizer, self.modules(model), own.rehearsals, own.rehearsal_seed)
        return Prepared(layers, features=found.features, scales=found.scales)

    def compute(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        prepared: Prepared,
        earlier: Mapping[str, Tensor] | None = None,
    ) -> Edit:
        """The update of all requests together, a column for each token of each target.

        Raises:
            EditFailedError: An update is not finite.
        """
        self.require_prepared(model, prepared)
        names = self.modules(model)
        read, before = self._read(model, tokenizer, requests, names)
        known = earlier.features if isinstance(earlier, Earlier) else {}
        updates, owners, features = {}, {}, {}
        for name in names:
            hidden, gradient, owner = read[name]
            rows = torch.cat([hidden, gradient], dim=1)
            parts = [part_of(rows[owner == index]) for index in range(len(requests))]
            state = merged([*(found[name] for found in (prepared.features, known) if name in found), *parts])
            assert state is not None
            updates[name] = self._update(hidden, gradient, state.to(rows.device), prepared.scales.get(name))
            owners[name], features[name] = tuple(owner.tolist()), torch.stack(parts)
            require_finite_factors(requests[0], updates[name].B, updates[name].A)
        return Edit(tuple(requests), updates, before, owners=owners, features=features)

    def _read(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], names: Sequence[str]
    ) -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], tuple[float, ...]]:
        """h (tokens, in), g (tokens, out) and the request of each token that is asked for, for each module."""
        found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in names}
        before: list[float] = []
        with frozen(model):
            for start in range(0, len(requests), AT_ONCE):
                batch = TargetBatch.of(model, tokenizer, requests[start : start + AT_ONCE])
                parts, least = traced(model, batch, names)
                before += least
                for name, part in parts.items():
                    asked = (batch.labels >= 0).to(part.inputs.device)
                    owner = batch.owner.to(asked.device)[asked.nonzero()[:, 0]] + start
                    found[name].append((part.inputs[asked], part.gradients[asked], owner))
        return {name: _joined(parts) for name, parts in found.items()}, tuple(before)

    def _update(self, hidden: Tensor, gradient: Tensor, state: Tensor, scale: float | None) -> LowRankUpdate:
        own, wide = self.hyperparameters, hidden.shape[1]
        keys = hidden.double()
        mean, deviation = mean_and_deviation(state)
        normal = (torch.cat([keys, gradient.double()], dim=1) - mean) / (deviation + EPSILON)
        lr = own.lr
        if lr is None:
            if scale is None:
                raise ValueError("prepared: holds no scale of the layers' outputs, which lr=None is measured by")
            lr = own.step * scale / wide
        values = -lr * normal[:, :wide].square().sum(1, keepdim=True) * normal[:, wide:]
        ridge = own.ridge
        if ridge is None:
            ridge = own.relative_ridge * float((mean.square() + deviation.square())[:wide].sum())
        system = keys @ keys.T + ridge * torch.eye(len(keys), dtype=keys.dtype, device=keys.device)
        rows = torch.cholesky_solve(keys, torch.linalg.cholesky(system))
        return LowRankUpdate(B=values.T.float().contiguous(), A=rows.float().contiguous())


def _joined(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    hidden, gradient, owner = zip(*parts, strict=True)
    return torch.cat(hidden), torch.cat(gradient), torch.cat(owner)
