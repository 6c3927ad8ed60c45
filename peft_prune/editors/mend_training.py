"""How MEND's network is trained: each step edits models of their own and asks them about other text."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..models.decoder import unwrapped
from ..models.inference import by_rows, input_device, padded
from ..models.tokenization import prompt_ids
from ..requests import EditRequest
from .gradients import gradients
from .mend_network import Network
from .target_likelihood import TargetBatch, target_log_probs


@dataclass(frozen=True)
class Trainer:
    """Takes training steps (Mitchell et al. 2022, equation 4); it keeps nothing of a step but network and optimizer.

    Args:
        modules: Names of the modules that are edited, in the order of the network's layers.
        batch_size: Edits of one step, each on a model of its own.
        cedit: Weight of the edit's loss.
        cloc: Weight of the locality's loss.
        grad_clip: Largest norm of a gradient.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    modules: Sequence[str]
    network: Network
    optimizer: torch.optim.Optimizer
    batch_size: int
    cedit: float
    cloc: float
    grad_clip: float

    def step(self, requests: Sequence[EditRequest], locality: Sequence[str], draw: str) -> float:
        """One step on requests and texts that ``draw`` decides; its loss."""
        rng = random.Random(draw)
        chosen = rng.sample(list(requests), min(self.batch_size, len(requests)))
        prompts = [rng.choice(request.paraphrase_prompts or (request.text,)) for request in chosen]
        texts = [rng.choice(locality) for _ in chosen]
        targets = [request.target_new for request in chosen]
        edits = self._edits(chosen)
        outer = TargetBatch.build(
            self.model, self.tokenizer, prompts, targets, [request.separator for request in chosen]
        )
        rows = [row[:64] for row in prompt_ids(self.tokenizer, texts)]
        ids, mask = padded(rows, left=False, device=input_device(self.model))
        with torch.no_grad():
            before = self._log_probs(ids, mask)
        with EditedRows(self.model, edits, len(chosen)):
            edit_loss = -target_log_probs(self.model, outer).mean()
            after = self._log_probs(ids, mask)
        divergence = torch.nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(-1)
        local_loss = (divergence * mask).sum() / mask.sum()
        loss = self.cedit * edit_loss + self.cloc * local_loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.grad_clip)
        self.optimizer.step()
        return float(loss.detach())

    def _edits(self, chosen: Sequence[EditRequest]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """x̃, -a δ̃ and the row of each token, for each module."""
        inner = TargetBatch.of(self.model, self.tokenizer, chosen)
        pairs, _ = gradients(self.model, inner, self.modules)
        self.network.train()
        edits = {}
        for index, (name, (x, delta, owner)) in enumerate(pairs.items()):
            self.network.maps.observe(x, delta)
            edits[name] = (*self.network(x, delta, index), owner)
        return edits

    def _log_probs(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits = unwrapped(self.model)(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return torch.log_softmax(logits.float(), dim=-1)


class EditedRows(ExitStack):
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
