"""The loss that v* is sought by (Meng et al. 2022, section 3.1, equation 4), of many requests at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .later_layers import LaterLayers
from .rows import Batch


def _logits(later: Sequence[LaterLayers], delta: Tensor, active: Tensor) -> list[tuple[Batch, Tensor]]:
    """The active rows of each part, and the logits where the loss reads them, (reads, vocabulary).

    The parts' last states go through the output embeddings together: reading those costs more than the products.
    """
    parts = [(part, active[part.batch.request]) for part in later]
    parts = [(part, keep) for part, keep in parts if bool(keep.any())]
    rows = [part.batch.rows(keep) for part, keep in parts]
    ahead = [part.states(keep, kept, delta) for (part, keep), kept in zip(parts[:-1], rows[:-1], strict=True)]
    part, keep = parts[-1]
    logits = part.logits(keep, rows[-1], delta, ahead).to(delta.device)
    return list(zip(rows, logits.split([len(kept.labels) for kept in rows]), strict=True))


class Objective:
    """Total loss and least target probability of every active request.

    Args:
        norms: Of each request's present output, (requests,).
        kl_factor: Weight of the KL divergence at the KL prompt.
        weight_decay: Weight of ‖δ‖ / ‖v‖².
    """

    def __init__(self, norms: Tensor, kl_factor: float, weight_decay: float) -> None:
        self._count = len(norms)
        self._norms = norms
        self._kl_factor, self._weight_decay = kl_factor, weight_decay
        self._base: dict[int, Tensor] = {}  # log-probabilities at the KL prompt before the first step

    def __call__(self, later: Sequence[LaterLayers], delta: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """(active,) each."""
        number, nll, kl = (delta.new_zeros(self._count) for _ in range(3))
        least = delta.new_ones(self._count)
        for rows, logits in _logits(later, delta, active):
            of_kl = rows.is_kl[rows.read_row]
            if bool(of_kl.any()):
                kl = kl.index_add(0, *self._divergence(rows.request[rows.read_row[of_kl]], logits[of_kl]))
            if bool(of_kl.all()):
                continue
            asked, row = logits[~of_kl], rows.read_row[~of_kl]
            scores = asked.gather(1, rows.labels[~of_kl][:, None])[:, 0] - torch.logsumexp(asked, dim=1)
            sums, tokens = (delta.new_zeros(len(rows.ids)) for _ in range(2))
            tokens = tokens.index_add(0, row, torch.ones_like(scores))
            mean = (sums.index_add(0, row, scores) / tokens)[~rows.is_kl]
            request = rows.request[~rows.is_kl]
            number = number.index_add(0, request, torch.ones_like(mean))
            nll = nll.index_add(0, request, -mean)
            least = least.scatter_reduce(0, request, mean.detach().exp(), "amin")
        decay = delta.norm(dim=1) / self._norms.square()
        losses = nll / number + self._kl_factor * kl + self._weight_decay * decay
        return losses[active], least[active]

    def _divergence(self, requests: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(logits, dim=-1)
        for place, request in enumerate(requests.tolist()):
            self._base.setdefault(request, log_probs[place].detach())
        base = torch.stack([self._base[request] for request in requests.tolist()])
        return requests, torch.nn.functional.kl_div(base, log_probs, log_target=True, reduction="none").sum(1)
