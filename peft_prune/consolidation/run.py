"""One consolidation of an adapter: its material, the training, and what came of each edit."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..editors.asking import asks_in_chat
from ..errors import EditFailedError
from ..models.inference import undisturbed
from ..processes import same
from ..requests import EditRequest
from ..spectral import LowRankUpdate, truncate
from ..tuner import PruneEditLayer
from .neighbors import neighbor_passages
from .own_texts import own_texts
from .passages import Passage, chat_passages, edit_passages, text_passages
from .phrasings import lent_phrasings, written_phrasings
from .settings import ConsolidationSettings
from .training import Material, Progress, Trained, train

PROBE_SHARE = 5
"""One in so many pieces of retention text is kept for the probe, but no more than `LARGEST_PROBE`."""
LARGEST_PROBE = 64


@dataclass(frozen=True, eq=False)
class Consolidated:
    """What a consolidation gave.

    Args:
        trained: Factors, settings with what was filled in, and all looks.
        texts: The retention texts.
        phrasings: For each request the prompts that the model found for it.
    """

    trained: Trained
    texts: tuple[str, ...]
    phrasings: tuple[tuple[str, ...], ...] = ()

    @property
    def factors(self) -> Mapping[str, LowRankUpdate]:
        """By module."""
        return self.trained.factors

    @property
    def margins(self) -> tuple[float, ...]:
        """By how many nats each edit's target stands before the next best token; below 0 it is not the answer."""
        return self.trained.seen[-1].margins

    @property
    def unreached(self) -> list[int]:
        """Indices of the edits whose target is not the most probable answer, under the bound."""
        return [index for index, margin in enumerate(self.margins) if not margin > 0]


def consolidate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    settings: ConsolidationSettings,
    texts: Sequence[str] | None = None,
    protected: Sequence[Passage] = (),
    progress: Progress | None = None,
    phrasings: Sequence[Sequence[str] | None] | None = None,
    shows_bars: bool = False,
    start: Mapping[str, LowRankUpdate] | None = None,
    standing: Sequence[EditRequest] = (),
) -> Consolidated:
    """Train the effective factors of ``model``'s adapter for all ``requests``; the adapter itself is not changed.

    Args:
        model: A PEFT model whose adapter holds F(raw) of all edits that stand.
        tokenizer: Its tokenizer.
        requests: The edits that are read.
        settings: How.
        texts: Retention texts; None lets the base write them.
        protected: Facts with their answers.
        progress: Called after every step.
        phrasings: For each request the prompts that the model has found for it before; None where it is still to be
            asked.
        shows_bars: While texts and phrasings are written.
        start: Factors that training begins with, by module, cut to the rank of F(raw); F(raw) itself, which is the
            bound in any case, if not given.
        standing: Further edits that stand and are not read; nothing is kept as the base has it about their subjects.

    Raises:
        InvalidRequestError: No retention text has two tokens.
        EditFailedError: The loss became NaN or Inf, or fewer edits hold than before.
    """
    adapter = model.base_model.one_adapter(None)
    layers: dict[str, PruneEditLayer] = {
        name: layer for name, layer in model.base_model.edited_layers(adapter) if layer.rank(adapter) > 0
    }
    limit = {name: layer.effective_update(adapter).to(torch.float32) for name, layer in layers.items()}
    start = limit if start is None else {name: _cut(start[name], own.rank) for name, own in limit.items()}
    settings = settings.for_edits(len(requests))
    chosen = _texts(model, tokenizer, texts, settings, shows_bars)
    pieces = text_passages(tokenizer, chosen, settings.text_length)
    if settings.keep_chat and any(map(asks_in_chat, requests)):
        with model.disable_adapter():
            pieces += chat_passages(model, tokenizer, chosen, settings.bfloat16)
    every = max(PROBE_SHARE, len(pieces) // LARGEST_PROBE)
    probe = pieces[::every]
    kept = [piece for index, piece in enumerate(pieces) if index % every] or probe
    written = _phrasings(model, tokenizer, requests, settings, phrasings, shows_bars)
    prompts = _prompts(requests, written, settings)
    edits = edit_passages(tokenizer, requests, chosen, settings.contexts, settings.seed, prompts)
    neighbors = neighbor_passages(
        *(model, tokenizer, requests, settings.neighbors, settings.seed),
        phrasings=prompts,
        standing=standing,
        in_chat=settings.keep_chat,
        bfloat16=settings.bfloat16,
        progress=shows_bars,
    )
    material = Material(edits, kept, probe, protected, neighbors)
    trained = train(model, layers, start, limit, material, settings, progress)
    require_no_loss(trained)
    return Consolidated(trained, tuple(chosen), tuple(written))


def _cut(update: LowRankUpdate, rank: int) -> LowRankUpdate:
    wide = update.to(torch.float32)
    return wide if wide.rank <= rank else truncate(wide, rank=rank)[0]


def require_no_loss(trained: Trained) -> None:
    """Raise EditFailedError where fewer edits hold than before the training."""
    before, after = trained.seen[0], trained.seen[-1]
    if after.held < before.held:
        raise EditFailedError(
            f"consolidation: {after.held} of {len(after.margins)} edits hold after {after.step} steps, {before.held} "
            "held before, so nothing has changed; take more steps or a smaller beta"
        )


def _phrasings(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    settings: ConsolidationSettings,
    known: Sequence[Sequence[str] | None] | None,
    shows_bars: bool,
) -> list[tuple[str, ...]]:
    """What the base finds for each request, or has found before."""
    if not settings.phrasings:
        return [() for _ in requests]
    found = [None if own is None else tuple(own) for own in known or [None] * len(requests)]
    missing = [index for index, own in enumerate(found) if own is None]
    with model.disable_adapter():
        new = written_phrasings(
            model, tokenizer, [requests[index] for index in missing], settings.seed, progress=shows_bars
        )
    for index, own in zip(missing, new, strict=True):
        found[index] = own
    return [own or () for own in found]


def _prompts(
    requests: Sequence[EditRequest], written: Sequence[Sequence[str]], settings: ConsolidationSettings
) -> list[list[str]]:
    """Of each request the prompts beside its own: at most so many that the model found, and as many of its relation."""
    draw, most = random.Random(settings.seed), settings.phrasings
    found = []
    for own, lent in zip(written, lent_phrasings(requests), strict=True):
        chosen = [*own[:most], *draw.sample(lent, min(most, len(lent)))]
        found.append(list(dict.fromkeys(chosen)))
    return found


def _texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str] | None,
    settings: ConsolidationSettings,
    shows_bars: bool,
) -> list[str]:
    """The given texts, as many as are asked for; or those that the base writes."""
    count = settings.texts or 1
    if texts is None:
        with undisturbed(model), model.disable_adapter():
            # another process's device may draw another token
            return same(
                "retention texts",
                lambda: own_texts(model, tokenizer, count, settings.text_length, settings.seed, progress=shows_bars),
            )
    given = list(texts)
    if len(given) <= count:
        return given
    return random.Random(settings.seed).sample(given, count)
