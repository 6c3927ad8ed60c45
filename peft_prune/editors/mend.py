"""MEND: a trained network turns the fine-tuning gradient of a fact into its update."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..errors import AdapterError, EditFailedError, UnsupportedModelError
from ..models.decoder import hidden_size, unwrapped
from ..models.fingerprint import base_fingerprint, same_base
from ..models.inference import by_rows, input_device, padded
from ..models.mlp import features
from ..models.tokenization import prompt_ids
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .base import Edit, Editor, Prepared, register_editor
from .hyperparameters import checked_layers
from .second_moment import SecondMoments
from .target_likelihood import TargetBatch, frozen, target_log_probs

SMALL_WIDTH = 1024


@dataclass(frozen=True)
class MENDHyperparameters:
    """Defaults are the published ones, but for ``layers``, where the paper edits all linear maps of the MLPs.

    Args:
        layers: Layers that are edited; None takes the last three, as published.
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

    layers: tuple[int, ...] | None = None
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
        object.__setattr__(self, "layers", checked_layers(self.layers))
        for name in ("rank", "edit_lr", "lr", "lr_lr", "grad_clip", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0")
        if self.weights is not None:
            object.__setattr__(self, "weights", str(self.weights))


SMALL: dict[str, Any] = {"lr": 3e-4, "lr_lr": 1e-2, "edit_lr": 1e-2}
"""Training rates for small models, whose networks can be trained in minutes."""


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

    hyperparameters: MENDHyperparameters

    @classmethod
    def adapted(cls, model: Any) -> dict[str, Any]:
        """`SMALL` for a model narrower than `SMALL_WIDTH`, nothing for others."""
        return dict(SMALL) if hidden_size(model) < SMALL_WIDTH else {}

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
        if self.hyperparameters.weights is None:
            raise ValueError("weights: MEND edits with a trained network; train one with MEND.train and name its file")
        network = self._network(model)
        _load(Path(self.hyperparameters.weights), network, None, base_fingerprint(unwrapped(model)))
        prepared = Prepared(self.admitted(model))
        prepared.once("network", lambda: network.eval().requires_grad_(False))
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
        network: _Network = prepared.once("network", lambda: None)
        batch = TargetBatch.build(model, tokenizer, [r.text for r in requests], [r.target_new for r in requests])
        with frozen(model):
            gradients, before = _gradients(model, batch, self.modules(model))
        updates, owners = {}, {}
        for index, (name, (x, delta, owner)) in enumerate(gradients.items()):
            with torch.no_grad():
                keys, values = network(x, delta, index)
            updates[name] = LowRankUpdate(B=values.T.contiguous(), A=keys.contiguous())
            owners[name] = tuple(owner.tolist())
            if not (torch.isfinite(keys).all() and torch.isfinite(values).all()):
                raise EditFailedError(f"subject {requests[0].subject!r}: its update holds NaN or Inf")
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
        network = self._network(model)
        optimizer = torch.optim.Adam(
            [
                {"params": list(network.maps.parameters()), "lr": self.hyperparameters.lr},
                {"params": [network.step_sizes], "lr": self.hyperparameters.lr_lr},
            ]
        )
        done = _load(path, network, optimizer, base) if path.exists() else 0
        losses: list[float] = []
        with frozen(model), tqdm(total=steps, initial=done, desc="Training MEND", disable=not progress) as bar:
            for step in range(done, steps):
                losses.append(self._step(model, tokenizer, network, optimizer, requests, locality, f"{seed} {step}"))
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
                bar.update()
                if (step + 1) % save_every == 0 or step + 1 == steps:
                    _save(path, network, optimizer, step + 1, base)
        return losses

    def _step(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        network: _Network,
        optimizer: torch.optim.Optimizer,
        requests: Sequence[EditRequest],
        locality: Sequence[str],
        draw: str,
    ) -> float:
        own, rng = self.hyperparameters, random.Random(draw)
        chosen = rng.sample(list(requests), min(own.batch_size, len(requests)))
        prompts = [rng.choice(request.paraphrase_prompts or (request.text,)) for request in chosen]
        texts = [rng.choice(locality) for _ in chosen]
        targets = [request.target_new for request in chosen]
        modules = self.modules(model)
        inner = TargetBatch.build(model, tokenizer, [request.text for request in chosen], targets)
        gradients, _ = _gradients(model, inner, modules)
        network.train()
        edits = {}
        for index, (name, (x, delta, owner)) in enumerate(gradients.items()):
            network.maps.observe(x, delta)
            edits[name] = (*network(x, delta, index), owner)
        outer = TargetBatch.build(model, tokenizer, prompts, targets)
        ids, mask = padded([row[:64] for row in prompt_ids(tokenizer, texts)], left=False, device=input_device(model))
        with torch.no_grad():
            before = torch.log_softmax(_logits(model, ids, mask).float(), dim=-1)
        with _edited_rows(model, edits, len(chosen)):
            edit_loss = -target_log_probs(model, outer).mean()
            after = torch.log_softmax(_logits(model, ids, mask).float(), dim=-1)
        divergence = torch.nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(-1)
        local_loss = (divergence * mask).sum() / mask.sum()
        loss = own.cedit * edit_loss + own.cloc * local_loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), own.grad_clip)
        optimizer.step()
        return float(loss.detach())

    def _network(self, model: Any) -> _Network:
        modules = [unwrapped(model).get_submodule(name) for name in self.modules(model)]
        shapes = {features(module) for module in modules}
        shape = shapes.pop()
        if shapes or shape is None:
            raise UnsupportedModelError("layers: their MLPs' outputs differ in shape; MEND has one network for all")
        own = self.hyperparameters
        network = _Network(*shape, self.layers(model), own.rank, own.edit_lr)
        return network.to(next(modules[0].parameters()).device)


class _Maps(nn.Module):
    """(x, δ) → (x̃, δ̃): two residual maps of low rank, shared by the layers but for a scale and a shift of each.

    It starts as the identity on normalised pairs (Mitchell et al. 2022, section 3.2 and appendix).
    """

    def __init__(self, wide: int, high: int, layers: int, rank: int) -> None:
        super().__init__()
        width = wide + high
        rank = min(rank, width)
        generator = torch.Generator().manual_seed(0)
        bound = (6 / (width + rank)) ** 0.5
        self.wide = wide
        self.inner = nn.ParameterList((torch.rand(rank, width, generator=generator) * 2 - 1) * bound for _ in range(2))
        self.outer = nn.ParameterList(torch.zeros(width, rank) for _ in range(2))
        self.bias = nn.ParameterList(torch.zeros(width) for _ in range(2))
        self.scale = nn.ParameterList(torch.ones(layers, width) for _ in range(2))
        self.shift = nn.ParameterList(torch.zeros(layers, width) for _ in range(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))
        self.count: Tensor
        self.mean: Tensor
        self.squares: Tensor

    @torch.no_grad()
    def observe(self, x: Tensor, delta: Tensor) -> None:
        """Take pairs into the running mean and variance (Welford)."""
        rows = torch.cat([x, delta], dim=1).double()
        total = self.count + len(rows)
        mean, squares = rows.mean(0), (rows - rows.mean(0)).square().sum(0)
        self.squares += squares + (mean - self.mean).square() * self.count * len(rows) / total
        self.mean += (mean - self.mean) * len(rows) / total
        self.count.copy_(total)

    def forward(self, x: Tensor, delta: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        rows = torch.cat([x, delta], dim=1)
        spread = (self.squares / (self.count - 1).clamp(min=1)).sqrt()
        rows = ((rows - self.mean) / (spread + 1e-7)).to(x.dtype)
        for index in range(2):
            change = rows @ self.inner[index].T @ self.outer[index].T + self.bias[index]
            change = change * self.scale[index][layer] + self.shift[index][layer]
            rows = rows + (change.clamp(min=0) if index == 0 else change)
        return rows[:, : self.wide], rows[:, self.wide :]


class _Network(nn.Module):
    """The maps, and a step size for each layer."""

    def __init__(self, wide: int, high: int, layers: Sequence[int], rank: int, edit_lr: float) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.maps = _Maps(wide, high, len(layers), rank)
        self.step_sizes = nn.Parameter(torch.full((len(layers),), edit_lr))

    def forward(self, x: Tensor, delta: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Rows x̃ (tokens, in) and -a δ̃ (tokens, out) of the update."""
        keys, values = self.maps(x, delta, layer)
        return keys, -self.step_sizes[layer] * values


def _gradients(
    model: Any, batch: TargetBatch, modules: Sequence[str]
) -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], tuple[float, ...]]:
    """x (tokens, in), δ (tokens, out) and the row of each token whose δ is not zero, for each module, float32."""
    inputs: dict[str, Tensor] = {}
    probes: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[name] = args[0].detach().float()
            probes[name] = torch.zeros_like(output, dtype=torch.float32, requires_grad=True)
            return output + probes[name].to(output.dtype)

        return hook

    with torch.enable_grad(), ExitStack() as stack:
        for name in modules:
            module = unwrapped(model).get_submodule(name)
            stack.callback(module.register_forward_hook(watch(name)).remove)
        scores = target_log_probs(model, batch)
        gradients = torch.autograd.grad(-scores.sum(), [probes[name] for name in modules])
    found = {}
    for name, gradient in zip(modules, gradients, strict=True):
        x, delta = by_rows(inputs[name], len(batch.ids)), by_rows(gradient, len(batch.ids))
        reached = batch.mask.bool().to(delta.device) & (delta != 0).any(-1)
        found[name] = x[reached], delta[reached], reached.nonzero()[:, 0]
    return found, tuple(scores.detach().exp().tolist())


class _edited_rows(ExitStack):
    """The model with an update of its own for each row of a batch."""

    def __init__(self, model: Any, edits: Mapping[str, tuple[Tensor, Tensor, Tensor]], rows: int) -> None:
        super().__init__()
        for name, (keys, values, owner) in edits.items():
            module = unwrapped(model).get_submodule(name)
            self.callback(module.register_forward_hook(self._hook(keys, values, owner, rows)).remove)

    @staticmethod
    def _hook(keys: Tensor, values: Tensor, owner: Tensor, rows: int) -> Any:
        own = torch.arange(rows, device=owner.device)[:, None] == owner[None]  # (rows, tokens)

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            weights = (by_rows(args[0].float(), rows) @ keys.T) * own[:, None].to(keys.dtype)
            return output + (weights @ values).to(output.dtype).view_as(output)

        return hook


def _logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return unwrapped(model)(input_ids=ids, attention_mask=mask, use_cache=False).logits


def _save(path: Path, network: _Network, optimizer: torch.optim.Optimizer, step: int, base: str | None) -> None:
    """One safetensors file with the network, the optimizer's moments and the step; whole or not at all."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    metadata = {"kind": "mend", "step": str(step), "base": base or "", "layers": json.dumps(network.layers)}
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, temporary, metadata)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _load(path: Path, network: _Network, optimizer: torch.optim.Optimizer | None, base: str | None) -> int:
    """Read what `_save` wrote and return its step."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"weights: {path} cannot be read: {error}") from None
    if metadata.get("kind") != "mend":
        raise AdapterError(f"weights: {path} holds no MEND network")
    if base is not None and metadata["base"] and not same_base(metadata["base"], base):
        raise AdapterError(f"weights: {path} was trained for another base; train one for this base")
    if json.loads(metadata["layers"]) != list(network.layers):
        raise AdapterError(f"weights: {path} was trained for layers {metadata['layers']}, not {list(network.layers)}")
    own = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    if {name: tuple(t.shape) for name, t in own.items()} != shapes:
        raise AdapterError(f"weights: {path} has another rank or other widths than the network asked for")
    network.load_state_dict(own)
    if optimizer is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, field = rest.partition(".")
                state.setdefault(int(index), {})[field] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])
