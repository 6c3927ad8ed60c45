"""v*: the output that makes the edited layer's later layers give the target, found by gradient descent on one vector.

The model's weights are never touched and get no gradients. What is skipped against the published loop does not change
the result: blocks up to the edited one and positions before the subject's last token run once, logits are computed only
where the loss reads them, and all requests of a batch run together until each has converged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import EditFailedError
from ..models.experts import SHARED
from ..models.inference import input_device
from ..models.sharing import shared
from ..processes import process_count
from ..requests import EditRequest
from .later_layers import LaterLayers
from .objective import Objective
from .rows import Batch, grouped, request_rows
from .steps import AdamSteps, PolyakSteps, Steps
from .target_likelihood import frozen


@dataclass(frozen=True)
class ValueSettings:
    """How v* is searched (Meng et al. 2022, section 3.1, equation 4; the published code's names in brackets).

    Args:
        optimizer: "adam" as published, or "polyak", steps as long as the loss has still to fall (`steps.PolyakSteps`).
        learning_rate: Of Adam [v_lr].
        longest_step: Of Polyak's steps, the longest, as a multiple of ‖v‖.
        steps: Most updates [v_num_grad_steps - 1: the published loop leaves before its last one].
        weight_decay: Weight of ‖δ‖ / ‖v‖² in the loss [v_weight_decay].
        clamp_factor: Limit of ‖δ‖ / ‖v‖ [clamp_norm_factor].
        kl_factor: Weight of the KL divergence at "{subject} is a" [kl_factor].
        stop: "probability" ends a request once every context gives the target ``stop_probability``; "loss" is the
            published rule, total loss below ``stop_loss``.
        stop_probability: See ``stop``.
        stop_loss: See ``stop``.
        site: Where the vector is added: "mlp", the MLP's output as in ROME, or "block", the block's as in MEMIT.
            "residual" is "mlp" for a block that hands its MLP's output on unchanged: the edited block then runs once.
        autocast: Dtype of the forward passes, or None for the model's own; the vector stays float32.
        max_tokens: Most tokens of the requests that are searched for together, padding included, one request at least;
            None for no limit.
        anchor: Norm that v* is given at the end, as an output of the MLP; None for none. See `anchored`.
        anchor_limit: See there.
        measures: Take the MLP's output also where the vector is added to the block's.
        experts: Which ones of a mixture, as in `mlp_output_modules`.
    """

    optimizer: str = "adam"
    learning_rate: float = 0.5
    longest_step: float = 0.15
    steps: int = 20
    weight_decay: float = 0.5
    clamp_factor: float = 4.0
    kl_factor: float = 0.0625
    stop: str = "probability"
    stop_probability: float = 0.8
    stop_loss: float = 0.05
    site: str = "mlp"
    autocast: torch.dtype | None = None
    max_tokens: int | None = None
    anchor: float | None = None
    anchor_limit: float = 2.0
    measures: bool = False
    experts: str = SHARED


@dataclass(frozen=True)
class OptimizedValue:
    """The result for one request.

    Args:
        delta: v* minus the present output at the subject's last token of the bare prompt, (out,), float32.
        output: That present output, (out,), float32.
        probability_before: Least probability of the target over the contexts before the first step.
        probability: The same at the end of the search, before any anchoring.
        loss: Total loss at the end.
        steps: Gradient steps taken.
        mlp_output: What the MLP gives there at present, (out,), where that is measured; else ``output``.
    """

    delta: Tensor
    output: Tensor
    probability_before: float
    probability: float
    loss: float
    steps: int
    mlp_output: Tensor


def optimize_values(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layer: int,
    settings: ValueSettings,
) -> list[OptimizedValue]:
    """v* for every request at the output of ``layer``, its MLP's or its own as ``settings.site`` says.

    Args:
        model: The model as it is now, with whatever adapter is active.
        contexts: Prefixes of the prompt; the first is empty, the bare prompt.

    Several processes share the requests out. With ``settings.max_tokens``, requests are searched for in parts.

    Raises:
        EditFailedError: The optimisation of a request gives NaN or Inf; the message names its subject.
    """

    def searched(own: Sequence[EditRequest]) -> list[OptimizedValue]:
        found: list[OptimizedValue] = []
        for part in _parts(tokenizer, own, contexts, settings.max_tokens):
            with frozen(model), ExitStack() as stack:
                later = [
                    stack.enter_context(
                        LaterLayers(
                            *(model, Batch.build(rows, input_device(model)), layer, settings.site, settings.autocast),
                            takes_mlp=settings.measures or settings.anchor is not None,
                            experts=settings.experts,
                        )
                    )
                    for rows in grouped(request_rows(tokenizer, part, contexts))
                ]
                found += _descend(later, part, settings)
        return found

    found = shared(model, "values", list(requests), searched)
    place = found[0].delta.device if process_count() == 1 else torch.device("cpu")
    return [
        replace(
            value, delta=value.delta.to(place), output=value.output.to(place), mlp_output=value.mlp_output.to(place)
        )
        for value in found
    ]


def _parts(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], contexts: Sequence[str], most: int | None
) -> Iterator[Sequence[EditRequest]]:
    """The requests in their order, as many together as have at most so many tokens, padding included; at least one."""
    if most is None:
        yield from [requests] if requests else []
        return
    part: list[EditRequest] = []
    count = width = 0
    for request in requests:
        rows = request_rows(tokenizer, [request], contexts)
        own = max(len(row.ids) for row in rows)
        if part and (count + len(rows)) * max(width, own) > most:
            yield part
            part, count, width = [], 0, 0
        part.append(request)
        count, width = count + len(rows), max(width, own)
    if part:
        yield part


def _descend(
    later: Sequence[LaterLayers], requests: Sequence[EditRequest], settings: ValueSettings
) -> list[OptimizedValue]:
    count = len(requests)
    first = later[0].outputs
    output, of_mlp = (first.new_zeros(count, first.shape[-1], dtype=torch.float32) for _ in range(2))
    for part in later:
        bare = part.batch.is_bare
        output[part.batch.request[bare]] = part.outputs[bare].float()
        of_mlp[part.batch.request[bare]] = part.mlp_outputs[bare].float()
    norms = output.norm(dim=1)
    delta = torch.zeros_like(output, requires_grad=True)
    move = _steps(delta, norms, settings)
    objective = Objective(norms, settings.kl_factor, settings.weight_decay)
    before = torch.zeros(count)
    last: dict[int, tuple[float, float, int]] = {}
    active = torch.ones(count, dtype=torch.bool, device=output.device)
    for step in range(settings.steps + 1):
        losses, least = objective(later, delta, active)
        for position, index in enumerate(active.nonzero().flatten().tolist()):
            if step == 0:
                before[index] = float(least[position])
            last[index] = (float(losses[position].detach()), float(least[position]), step)
        if not torch.isfinite(losses).all():
            bad = active.nonzero().flatten()[~torch.isfinite(losses)][0]
            raise EditFailedError(f"{requests[int(bad)].about}: the optimisation of its value gives NaN or Inf")
        done = least >= settings.stop_probability if settings.stop == "probability" else losses < settings.stop_loss
        active = active.clone()
        active[active.nonzero().flatten()[done]] = False
        if step == settings.steps or not bool(active.any()):
            break
        move(losses[~done], active)
        with torch.no_grad():
            limit = settings.clamp_factor * norms[active]
            size = delta[active].norm(dim=1)
            delta[active] *= (limit / size.clamp(min=1e-12)).clamp(max=1.0)[:, None]
    found = delta.detach()
    if settings.anchor is not None:
        found = anchored(found, of_mlp, settings.anchor, settings.anchor_limit)
    return [
        OptimizedValue(found[i], output[i], float(before[i]), last[i][1], last[i][0], last[i][2], of_mlp[i])
        for i in range(count)
    ]


def _steps(delta: Tensor, norms: Tensor, settings: ValueSettings) -> Steps:
    if settings.optimizer == "adam":
        return AdamSteps(delta, settings.learning_rate)
    arrived = settings.stop_probability if settings.stop == "probability" else math.exp(-settings.stop_loss)
    return PolyakSteps(delta, norms, arrived, settings.longest_step)


def anchored(delta: Tensor, output: Tensor, anchor: float, limit: float) -> Tensor:
    """δ with which v* = v₀ + δ has the norm ``anchor``; 0 where ‖v*‖ is above ``limit`` times that.

    Liu et al. 2026 (arXiv 2602.02543): v* ← v* · c / ‖v*‖; a search that has gone astray is not written at all, as in
    NAS/compute_z.py of the authors' repository.

    Args:
        delta: δ, (requests, out).
        output: v₀, what the MLP gives now, (requests, out).
        anchor: c.
        limit: See above.
    """
    value = output + delta
    norms = value.norm(dim=1, keepdim=True)
    moved = value * (anchor / norms.clamp(min=torch.finfo(norms.dtype).tiny)) - output
    return torch.where(norms > limit * anchor, torch.zeros_like(delta), moved)
