"""One number for an edited model, and its distance from the base model, with intervals over requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from .bootstrap import GAP, SHARE, Draws, harmonic, share
from .editing import Outcomes
from .estimates import Mean

SCORED = ("efficacy", "generalization", "locality")
"""What the score of CounterFact is the harmonic mean of."""


def harmonic_score(outcomes: Mapping[str, Sequence[Sequence[float]]] | Outcomes, *, greedy: bool = False) -> Mean:
    """The harmonic mean of efficacy, generalization and locality (Meng et al. 2022, section 3.4: S).

    The interval is the percentile bootstrap over requests, each with all of its prompts. A request counts only where
    all three can be asked of it.

    Args:
        outcomes: Of :func:`~peft_prune.evaluation.request_outcomes`.
        greedy: Take the figures by greedy generation in place of those by probability.
    """
    return _mean(score_draws(outcomes, "_greedy" if greedy else ""), SHARE)


def score_draws(outcomes: Mapping[str, Sequence[Sequence[float]]], form: str) -> Draws | None:
    """:func:`harmonic_score` with its resamples; ``form`` is the ending of the figures' names, "" or "_greedy"."""
    kinds = [outcomes.get(kind + form, ()) for kind in SCORED]
    whole = [parts for parts in zip(*kinds, strict=True) if all(parts)]
    return Draws.of([list(chain.from_iterable((sum(own), len(own)) for own in parts)) for parts in whole], harmonic)


def difference(own: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> Mean:
    """The share of an edited model minus that of the base on the same prompts, paired request by request.

    Args:
        own: Outcomes of the edited model, for each request one number for each prompt.
        base: Those of the base model.

    Returns:
        The difference of the shares over all prompts, with the percentile bootstrap over requests; n counts requests.

    Raises:
        ValueError: They belong to other prompts.
    """
    if [len(one) for one in own] != [len(one) for one in base]:
        raise ValueError(f"base: has outcomes of {len(base)} requests on other prompts than own, of {len(own)}")
    draws = [Draws.of([[sum(one), len(one)] for one in side if one], share) for side in (own, base)]
    if draws[0] is None or draws[1] is None:
        return _mean(None, GAP)
    return _mean(draws[0].minus(draws[1]), GAP)


def differences(
    own: Mapping[str, Sequence[Sequence[float]]], base: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, Mean]:
    """:func:`difference` of every figure that both have."""
    return {kind: difference(own[kind], base[kind]) for kind in own if kind in base}


def _mean(draws: Draws | None, bounds: tuple[float, float]) -> Mean:
    return Mean(None, 0, None, None) if draws is None else draws.mean(bounds)
