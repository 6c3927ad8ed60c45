"""MEND: a trained network turns the fine-tuning gradient of a fact into its update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import UnsupportedModelError
from ..models.decoder import unwrapped
from ..models.experts import SHARED
from ..models.fingerprint import base_fingerprint
from ..models.mlp import features
from ..moving import moving_bar
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .base import Edit, Editor, Prepared, register_editor, require_finite_factors
from .gradients import gradients
from .hyperparameters import EditorHyperparameters
from .mend_file import load_network, save_network
from .mend_network import Network
from .mend_training import Trainer
from .second_moment import SecondMoments
from .target_likelihood import TargetBatch, frozen
from .validation import check_above_zero, check_zero_or_above


@dataclass(frozen=True)
class MENDHyperparameters(EditorHyperparameters):
    """Defaults are the published ones, but for what is edited: the paper edits all linear maps of the MLPs.

    Where no layers are given, the last three are edited, as published; there is no stronger setting for a second try.

    Args:
        rank: Of the two maps of the network; no more than their width is used.
        edit_lr: First value of the learned step size of each layer.
        lr: Learning rate of the network.
        lr_lr: Learning rate of the step sizes.
        cedit: Weight of the edit's loss in training.
        cloc: Weight of the locality's loss in training.
        grad_clip: Largest norm of a training gradient.
        batch_size: Edits of one training step, each on a model of its own.
        weights: File of a trained network.
    """

    rank: int = 1920
    edit_lr: float = 1e-4
    lr: float = 1e-6
    lr_lr: float = 1e-4
    cedit: float = 0.1
    cloc: float = 1.0
    grad_clip: float = 100.0
    batch_size: int = 10
    weights: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.weights, Path):
            object.__setattr__(self, "weights", str(self.weights))
        super().__post_init__()
        check_above_zero(self, "rank", "edit_lr", "lr", "lr_lr", "grad_clip", "batch_size")
        check_zero_or_above(self, "cedit", "cloc")


ADAPTED: dict[str, Any] = {"lr": 3e-4, "lr_lr": 1e-2, "edit_lr": 1e-2}
"""Rates for a network that is trained for a thousand steps, not for the published hundred thousands."""


@register_editor
class MEND(Editor):
    """Model Editor Networks with Gradient Decomposition (Mitchell et al. 2022, section 3).

    The gradient of a fact's loss at a linear map is a sum over tokens of δ xᵀ. A network shared by the layers maps each
    pair (x, δ) to (x̃, δ̃), and the update is -a Σ δ̃ x̃ᵀ with a learned step size a for each layer: its rank is the number
    of tokens. The pairs are taken as they are; no gradient runs through them, as in the published code.
    """

    name: ClassVar[str] = "mend"
    pretty_name: ClassVar[str] = "MEND"
    paper: ClassVar[str] = "Mitchell, Lin, Bosselut, Finn, Manning: Fast Model Editing at Scale"
    year: ClassVar[int] = 2022
    url: ClassVar[str] = "https://arxiv.org/abs/2110.11309"
    hyperparameters_class: ClassVar[type] = MENDHyperparameters
    needs_subject: ClassVar[bool] = False

    hyperparameters: MENDHyperparameters

    @classmethod
    def adapted(cls, model: Any, experts: str = SHARED) -> dict[str, Any]:
        """`ADAPTED`."""
        return dict(ADAPTED)

    def default_layers(self, depth: int) -> tuple[int, ...]:
        return tuple(range(max(0, depth - 3), depth))

    def prepare(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, statistics: SecondMoments | None = None
    ) -> Prepared:
        """Load the trained network; second moments are not used.

        Raises:
            ValueError: No network was named.
            AdapterError: Its file is damaged, or was trained for another base or other layers.
        """
        prepared = Prepared(self.admitted(model))
        self._trained(model, prepared)
        return prepared

    def compute(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        prepared: Prepared,
        earlier: Mapping[str, Tensor] | None = None,
    ) -> Edit:
        """The update of all requests: the sum of those of each, computed on the model as it is now.

        Raises:
            EditFailedError: An update is not finite.
        """
        self.require_prepared(model, prepared)
        network = self._trained(model, prepared)
        batch = TargetBatch.of(model, tokenizer, requests)
        with frozen(model):
            pairs, before = gradients(model, batch, self.modules(model))
        updates, owners = {}, {}
        for index, (name, (x, delta, owner)) in enumerate(pairs.items()):
            with torch.no_grad():
                keys, values = network(x, delta, index)
            updates[name] = LowRankUpdate(B=values.T.contiguous(), A=keys.contiguous())
            owners[name] = tuple(owner.tolist())
            require_finite_factors(requests[0], keys, values)
        return Edit(tuple(requests), updates, before, owners=owners)

    def train(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        locality: Sequence[str],
        path: str | Path,
        *,
        steps: int,
        save_every: int = 100,
        seed: int = 0,
        progress: bool = True,
    ) -> list[float]:
        """Train the network and save it; go on where an earlier call with the same file stopped.

        A step takes ``batch_size`` requests. Each is edited on a model of its own, which must then give the target
        behind a paraphrase (or the prompt, where a request has none) and say the same as before on a text of
        ``locality`` (Mitchell et al. 2022, equation 4). What a step draws depends on ``seed`` and its number alone.

        Args:
            model: The unedited model; it is not changed.
            tokenizer: Its tokenizer.
            requests: Facts to train on, other ones than those that are edited later.
            locality: Texts that edits must leave alone.
            path: Safetensors file of the network and its optimizer.
            steps: Steps in all, those of earlier calls included.
            save_every: Steps between two savings.
            seed: Of what is drawn.
            progress: Show a bar.

        Returns:
            The loss of each step that this call made.

        Raises:
            ValueError: There are no requests or no texts, or ``steps`` is below 1.
            AdapterError: The file is damaged, or was trained for another base or other layers.
        """
        if not requests or not locality:
            raise ValueError("requests, locality: MEND needs at least one of each to train on")
        if steps < 1 or save_every < 1:
            raise ValueError(f"steps: {steps} and save_every: {save_every} must be at least 1")
        path, base = Path(path), base_fingerprint(unwrapped(model))
        own, network = self.hyperparameters, self._network(model)
        optimizer = torch.optim.Adam(
            [
                {"params": list(network.maps.parameters()), "lr": own.lr},
                {"params": [network.step_sizes], "lr": own.lr_lr},
            ]
        )
        weights = (own.batch_size, own.cedit, own.cloc, own.grad_clip)
        trainer = Trainer(model, tokenizer, self.modules(model), network, optimizer, *weights)
        done = load_network(path, network, optimizer, base) if path.exists() else 0
        losses: list[float] = []
        with frozen(model), moving_bar(total=steps, initial=done, desc="Training MEND", disable=not progress) as bar:
            for step in range(done, steps):
                losses.append(trainer.step(requests, locality, f"{seed} {step}"))
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
                bar.update()
                if (step + 1) % save_every == 0 or step + 1 == steps:
                    save_network(path, network, optimizer, step + 1, base)
        return losses

    def _trained(self, model: Any, prepared: Prepared) -> Network:
        """The network of the file ``weights``, read once."""
        weights = self.hyperparameters.weights
        if weights is None:
            raise ValueError("weights: MEND edits with a trained network; train one with MEND.train and name its file")

        def read() -> Network:
            network = self._network(model)
            load_network(Path(weights), network, None, base_fingerprint(unwrapped(model)))
            return network.eval().requires_grad_(False)

        found: Network = prepared.once(("mend", weights, self.hyperparameters.rank), read)
        return found

    def _network(self, model: Any) -> Network:
        modules = [unwrapped(model).get_submodule(name) for name in self.modules(model)]
        shapes = {features(module) for module in modules}
        shape = shapes.pop()
        if shapes or shape is None:
            raise UnsupportedModelError("layers: their MLPs' outputs differ in shape; MEND has one network for all")
        own = self.hyperparameters
        network = Network(*shape, self.layers(model), own.rank, own.edit_lr)
        return network.to(next(modules[0].parameters()).device)
