"""Whether a model may be run in part: what the search for v* leaves out must change no logit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..models.decoder import decoder_blocks, unwrapped
from ..models.experts import SHARED
from ..models.inference import by_rows, input_device, undisturbed
from ..models.mlp import mlp_output_module
from ..models.probe import is_precise, plain_ids
from .blocks import states_of
from .later_layers import LaterLayers
from .rows import Batch, Row

STARTS = (0.0, 0.25, 0.5)
"""Where in the vocabulary the tokens are taken that the passes are compared on, until they agree."""


def require_partial_passes(model: Any, layer: int, experts: str = SHARED) -> None:
    """Compare the pass over the layers from ``layer`` on with the whole model's, with a vector added there.

    Args:
        model: The model.
        layer: Where the vector is added.
        experts: Which ones of a mixture, as in `mlp_output_modules`.

    Raises:
        UnsupportedModelError: They differ, as where blocks hand on more than their states.
    """
    block_name, block = decoder_blocks(model)[layer]
    named = f"layer: {layer} ({block_name})"
    for site, module in (("mlp", mlp_output_module(model, layer, experts)[1]), ("block", block)):
        try:
            with undisturbed(model):
                # tokens whose states are huge drown in rounding; what agrees on others agrees
                agree = any(_apart(model, _texts(model, share), layer, site, module, experts) < 1 for share in STARTS)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnsupportedModelError(f"{named} cannot be run without the layers before it: {reason}") from error
        if not agree:
            raise UnsupportedModelError(
                f"{named} gives other logits without the layers before it, so no value can be searched there"
            )


def _texts(model: Any, share: float) -> list[list[int]]:
    """Two rows of different length, so that one is padded."""
    return [plain_ids(model, count, share) for count in (4, 3)]


def _apart(model: Any, texts: Sequence[Sequence[int]], layer: int, site: str, module: Any, experts: str) -> float:
    """Distance between the logits of both passes at the last two tokens, in units of what rounding may make of it.

    The vector is twice as long as the block's output: rounding is then small against what it changes.
    """
    rows = [
        Row(tuple(ids), len(ids) - 2, (len(ids) - 2, len(ids) - 1), (0, 0), request, False)
        for request, ids in enumerate(texts)
    ]
    batch = Batch.build(rows, input_device(model))
    keep = torch.ones(len(rows), dtype=torch.bool, device=batch.ids.device)
    with LaterLayers(model, batch, layer, "block", None, experts=experts) as later:
        present = later.outputs.float()
    delta = torch.randn(present.shape, generator=torch.Generator().manual_seed(0)).to(present.device)
    delta *= 2 * present.norm(dim=1, keepdim=True) / delta.norm(dim=1, keepdim=True)
    with LaterLayers(model, batch, layer, site, None, experts=experts) as later:
        part = later.logits(keep, batch, delta)
        share = 1e-3 if is_precise(unwrapped(model), later.outputs) else 0.25
    before, after = (
        torch.cat([_logits(model, ids, module, vector) for ids, vector in zip(texts, added, strict=True)])
        for added in (0 * delta, delta)
    )
    return float((part - after).norm() / (share * (after - before).norm()))


def _logits(model: Any, ids: Sequence[int], module: Any, delta: Tensor) -> Tensor:
    """Logits of the whole model at the last two tokens, (2, vocabulary), with the vector added before the last."""

    def add(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        states = states_of(output).clone()
        by_rows(states, 1)[:, -2] += delta.to(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    with ExitStack() as stack:
        stack.callback(module.register_forward_hook(add).remove)
        given = torch.tensor([list(ids)], device=input_device(model))
        return unwrapped(model)(input_ids=given, use_cache=False).logits[0, -2:].float()
