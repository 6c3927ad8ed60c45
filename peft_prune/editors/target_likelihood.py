"""The likelihood of targets behind prompts, differentiable, for editors that learn by gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..models.decoder import unwrapped
from ..models.inference import input_device, padded
from ..models.tokenization import continuation_ids
from ..requests import EditRequest
from .asking import request_contexts


@dataclass(frozen=True)
class TargetBatch:
    """Prompts with their targets.

    Args:
        ids: Token ids, (rows, width).
        mask: Of the attention, (rows, width).
        labels: Token ids that are asked for, (rows, width); -1 where nothing is asked.
        owner: The request that each row asks, (rows,).
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    owner: Tensor

    @staticmethod
    def build(
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        targets: Sequence[str],
        separators: Sequence[str | None] | None = None,
    ) -> TargetBatch:
        """Each target tokenized behind its prompt; its last token is asked for and not read."""
        pairs = continuation_ids(tokenizer, prompts, targets, separators)
        return TargetBatch.of_ids(model, [(pair.prompt, pair.target) for pair in pairs])

    @staticmethod
    def of_ids(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> TargetBatch:
        """The same of prompts and targets that are tokens already."""
        rows = [(*prompt, *target[:-1]) for prompt, target in pairs]
        ids, mask = padded(rows, left=False, device=input_device(model))
        labels = torch.full_like(ids, -1)
        for row, (prompt, target) in enumerate(pairs):
            start = len(prompt) - 1
            labels[row, start : start + len(target)] = torch.tensor(target, device=ids.device)
        return TargetBatch(ids, mask, labels, torch.arange(len(ids), device=ids.device))

    @staticmethod
    def of(model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest]) -> TargetBatch:
        """The new target of each request behind its bare prompt, and in chat where it is asked so."""
        asked = [request_contexts(tokenizer, request, [""]) for request in requests]
        rows = [
            (one.text, request.target_new, one.separator, index)
            for index, (request, own) in enumerate(zip(requests, asked, strict=True))
            for one in own
        ]
        texts, targets, separators, owner = zip(*rows, strict=True)
        batch = TargetBatch.build(model, tokenizer, texts, targets, separators)
        return replace(batch, owner=torch.tensor(owner, device=batch.ids.device))

    def rows(self, chosen: Tensor) -> TargetBatch:
        """Some of the rows, without the columns that are padding in all of them."""
        width = int(self.mask[chosen].sum(1).max())
        return TargetBatch(
            self.ids[chosen, :width], self.mask[chosen, :width], self.labels[chosen, :width], self.owner[chosen]
        )

    def ended(self, end: int) -> TargetBatch:
        """The same with one more token asked for behind each target: the one that ends a text."""
        rows, last = len(self.ids), self.mask.sum(1)
        ids, mask, labels = (
            torch.cat([part, part.new_full((rows, 1), fill)], dim=1)
            for part, fill in ((self.ids, 0), (self.mask, 0), (self.labels, -1))
        )
        row = torch.arange(rows, device=ids.device)
        ids[row, last] = self.labels[row, last - 1]  # the target's last token, which was asked for and not read
        mask[row, last], labels[row, last] = 1, end
        return TargetBatch(ids, mask, labels, self.owner)

    def by_request(self, probabilities: Tensor) -> tuple[float, ...]:
        """The least of each request's rows."""
        least = probabilities.new_ones(int(self.owner.max()) + 1)
        return tuple(least.scatter_reduce(0, self.owner.to(least.device), probabilities, "amin").tolist())


def target_log_probs(model: Any, batch: TargetBatch) -> Tensor:
    """Mean log-probability of each row's target tokens, (rows,), float32; logits are formed only where one is asked."""
    inner = unwrapped(model)
    asked = batch.labels >= 0

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][asked.to(args[0].device)][None], *args[1:])

    handle = inner.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        logits = inner(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[0]
    finally:
        handle.remove()
    labels = batch.labels[asked].to(logits.device)
    scores = torch.log_softmax(logits.float(), dim=-1).gather(1, labels[:, None])[:, 0]
    row = asked.nonzero()[:, 0].to(logits.device)
    sums = torch.zeros(len(batch.ids), device=logits.device).index_add(0, row, scores)
    return sums / asked.sum(1).to(logits.device)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for any parameter; both as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
