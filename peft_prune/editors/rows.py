"""What the search for v* runs: each request's contexts and its KL prompt as rows of tokens, and batches of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..models.inference import PADDING_ID
from ..models.tokenization import continuation_ids
from ..requests import EditRequest
from .asking import request_contexts, subject_prompts
from .tokens import tokenize_prompts

PASS_COST = 24
"""What one pass over the later layers costs beyond its tokens, in tokens: reading the weights."""


@dataclass(frozen=True)
class Row:
    """One context of one request, or its KL prompt: token ids, where the subject ends, what is read and asked for."""

    ids: tuple[int, ...]
    subject_last: int
    read: tuple[int, ...]
    labels: tuple[int, ...]
    request: int
    is_kl: bool

    @property
    def suffix(self) -> int:
        """Tokens from the subject's last one on, which are run at every step."""
        return len(self.ids) - self.subject_last


def request_rows(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], contexts: Sequence[str]
) -> list[Row]:
    """For each request its contexts, the one that it is verified by first, then its KL prompt."""
    rows = []
    for index, request in enumerate(requests):
        asked = request_contexts(tokenizer, request, contexts)
        texts, separators = [one.text for one in asked], [one.separator for one in asked]
        pairs = continuation_ids(tokenizer, texts, [request.target_new] * len(asked), separators)
        prompts = subject_prompts(tokenizer, asked)
        for prompt, pair in zip(prompts, pairs, strict=True):
            ids = pair.prompt + pair.target[:-1]
            read = tuple(range(len(pair.prompt) - 1, len(ids)))
            rows.append(Row(tuple(ids), prompt.subject_last, read, tuple(pair.target), index, False))
        (kl,) = tokenize_prompts(tokenizer, ["{} is a"], request.with_subject())
        rows.append(Row(tuple(kl.ids), kl.subject_last, (len(kl.ids) - 1,), (0,), index, True))
    return rows


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of similar suffixes together, so that padding and the number of passes cost the least in all."""
    lengths = sorted({row.suffix for row in rows})
    counts = [sum(row.suffix == length for row in rows) for length in lengths]
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]  # least cost of the first so many lengths, and its bounds
    for end in range(1, len(lengths) + 1):
        best.append(
            min(
                (best[start][0] + sum(counts[start:end]) * lengths[end - 1] + PASS_COST, (*best[start][1], end))
                for start in range(end)
            )
        )
    bounds = (0, *best[-1][1])
    return [
        [row for row in rows if lengths[start] <= row.suffix <= lengths[end - 1]]
        for start, end in itertools.pairwise(bounds)
    ]


@dataclass
class Batch:
    """Rows that are run together, padded on both sides so that every subject's last token stands in one column."""

    ids: Tensor  # (rows, width)
    mask: Tensor  # (rows, width)
    request: Tensor  # (rows,) index of the request
    is_kl: Tensor  # (rows,) bool
    is_bare: Tensor  # (rows,) bool, the bare prompt of its request
    read_row: Tensor  # (reads,) row and column of every position whose logits the loss reads
    read_column: Tensor  # (reads,)
    labels: Tensor  # (reads,) token ids
    subject: int  # the column

    @staticmethod
    def build(rows: Sequence[Row], device: torch.device) -> Batch:
        subject = max(row.subject_last for row in rows)
        width = subject + max(row.suffix for row in rows)
        ids = torch.full((len(rows), width), PADDING_ID)
        mask = torch.zeros_like(ids)
        reads, bare, seen = [], [], set()
        for i, row in enumerate(rows):
            start = subject - row.subject_last
            ids[i, start : start + len(row.ids)] = torch.tensor(row.ids)
            mask[i, start : start + len(row.ids)] = 1
            reads += [(i, start + column, label) for column, label in zip(row.read, row.labels, strict=True)]
            bare.append(not row.is_kl and row.request not in seen)
            seen |= set() if row.is_kl else {row.request}
        read_row, read_column, labels = torch.tensor(reads, device=device).T
        return Batch(
            ids=ids.to(device),
            mask=mask.to(device),
            request=torch.tensor([row.request for row in rows], device=device),
            is_kl=torch.tensor([row.is_kl for row in rows], device=device),
            is_bare=torch.tensor(bare, device=device),
            read_row=read_row,
            read_column=read_column,
            labels=labels,
            subject=subject,
        )

    def rows(self, keep: Tensor) -> Batch:
        """The rows with ``keep``, (rows,) bool."""
        if bool(keep.all()):
            return self
        place = keep.cumsum(0) - 1
        reads = keep[self.read_row]
        return Batch(
            self.ids[keep],
            self.mask[keep],
            self.request[keep],
            self.is_kl[keep],
            self.is_bare[keep],
            place[self.read_row[reads]],
            self.read_column[reads],
            self.labels[reads],
            self.subject,
        )
