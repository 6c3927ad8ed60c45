"""How the search for v* moves: Adam as published, or steps as long as the loss has still to fall."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

SMALLEST_FALL = 0.02
"""The loss is taken to have at least so far to fall: one context may lag while their mean has arrived."""

BEYOND = 0.5
"""The fall aimed at is to this share of the loss at which every context has arrived, so that the last ones do."""


class Steps(Protocol):
    """Moves δ, (requests, out), in place."""

    def __call__(self, losses: Tensor, moving: Tensor) -> None:
        """One step for the requests that ``moving``, (requests,) bool, names; ``losses``, (moving,), are theirs."""


class AdamSteps:
    """Adam (Kingma and Ba 2015), as in the published code (Meng et al. 2022).

    Args:
        delta: δ, (requests, out), a leaf that requires a gradient.
        learning_rate: Its rate: every entry of the first step has this size.
    """

    def __init__(self, delta: Tensor, learning_rate: float) -> None:
        self._delta = delta
        self._optimizer = torch.optim.Adam([delta], lr=learning_rate)

    def __call__(self, losses: Tensor, moving: Tensor) -> None:
        self._optimizer.zero_grad()
        losses.sum().backward()
        before = self._delta.detach().clone()
        self._optimizer.step()
        with torch.no_grad():
            # its momentum would move requests that have converged
            self._delta[~moving] = before[~moving]


class PolyakSteps:
    """δ ← δ − (L − L*) ∇L / ‖∇L‖², the step that a loss of known goal L* calls for (Polyak 1987, section 5.3.2).

    A gradient says how steep the loss is, and the goal how far it has to fall: no rate is needed, and none that
    depends on the model's width. A step is never longer than ``longest`` times the norm of the present output.

    Args:
        delta: δ, (requests, out), a leaf that requires a gradient.
        norms: Of each request's present output, (requests,).
        probability: Of the target at which a context has arrived.
        longest: See above.
    """

    def __init__(self, delta: Tensor, norms: Tensor, probability: float, longest: float) -> None:
        self._delta = delta
        self._longest = longest * norms
        self._goal = -BEYOND * math.log(probability)

    def __call__(self, losses: Tensor, moving: Tensor) -> None:
        (whole,) = torch.autograd.grad(losses.sum(), self._delta)
        gradient = whole[moving]
        steepness = gradient.norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
        fall = (losses.detach() - self._goal).clamp(min=SMALLEST_FALL)
        length = torch.minimum(fall / steepness, self._longest[moving])
        with torch.no_grad():
            self._delta[moving] -= gradient / steepness[:, None] * length[:, None]
