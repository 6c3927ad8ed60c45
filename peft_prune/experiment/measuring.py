"""Everything that is measured on one model, as outcomes of single requests, items and texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation import (
    Ability,
    Fact,
    RequestAnswers,
    ability_outcomes,
    recalled,
    request_entropies,
    request_outcomes,
    text_losses,
)
from ..monitoring import Monitor
from ..requests import EditRequest
from ..requests.asking import PLAIN
from .store import Outcomes


@dataclass(frozen=True)
class Material:
    """What a model is asked beside the edited facts.

    Args:
        facts: For recall; those that name an edited subject must be left out by the caller.
        texts: For perplexity.
        abilities: Tasks by name.
        fluency_tokens: Tokens generated for each request's n-gram entropy; 0 leaves it out.
        batch_size: Most prompts in one batch.
    """

    facts: Sequence[Fact] = ()
    texts: Sequence[str] = ()
    abilities: Mapping[str, Ability] = field(default_factory=dict)
    fluency_tokens: int = 0
    batch_size: int = 64

    def counts(self) -> dict[str, Any]:
        """How much there is of each, ready for JSON."""
        abilities = {name: len(ability.items) for name, ability in self.abilities.items()}
        return {"facts": len(self.facts), "texts": len(self.texts), "abilities": abilities}

    def digest(self) -> str:
        """Of everything that is asked, by which other material is noticed."""
        abilities = {name: asdict(ability) for name, ability in self.abilities.items()}
        for one in abilities.values():
            if one["ask"] == PLAIN:  # as in the digests from before there was a choice
                del one["ask"]
        return digest([[asdict(fact) for fact in self.facts], list(self.texts), abilities])


def digest(content: Any) -> str:
    """Sixteen characters that tell one content from another."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def measure(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    base_answers: RequestAnswers | None,
    material: Material,
    answers: RequestAnswers | None = None,
) -> Outcomes:
    """Outcomes by figure; for each request, item or text one list of numbers.

    Perplexity's lists hold a text's loss in nats and its number of tokens.
    """
    found = edit_outcomes(model, tokenizer, requests, base_answers, material.batch_size, answers)
    size: dict[str, Any] = {"batch_size": material.batch_size}
    if material.fluency_tokens:
        entropies = request_entropies(model, tokenizer, requests, max_new_tokens=material.fluency_tokens, **size)
        found["fluency"] = [[value] for value in entropies]
    if material.facts:
        found["recall"] = [[float(hit)] for hit in recalled(model, tokenizer, material.facts, **size)]
    if material.texts:
        found["perplexity"] = [list(one) for one in text_losses(model, tokenizer, material.texts, **size)]
    for name, ability in material.abilities.items():
        for metric, values in ability_outcomes(model, tokenizer, ability, **size).items():
            found[f"{name}/{metric}"] = [[value] for value in values]
    return found


def edit_outcomes(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    base_answers: RequestAnswers | None,
    batch_size: int,
    answers: RequestAnswers | None = None,
) -> Outcomes:
    """Outcomes of the edited facts alone."""
    found = request_outcomes(
        model, tokenizer, requests, base_answers=base_answers, answers=answers, batch_size=batch_size
    )
    return {kind: [[float(hit) for hit in own] for own in outcomes] for kind, outcomes in found.items()}


def layer_figures(model: PeftModel, moments: Mapping[str, Tensor] | None) -> dict[str, dict[str, float]]:
    """Figures of every layer, with the growth of its condition number, by module name."""
    found = Monitor(model, moments).figures()
    return {name: asdict(one) | {"growth": one.growth} for name, one in found.items()}


def spectra(model: PeftModel, most: int = 512) -> dict[str, dict[str, list[float]]]:
    """Singular values of W₀, of the raw ΔW and of the effective one in every layer, the largest ``most`` of each."""
    adapter, found = model.one_adapter(None), {}
    for name, layer in model.edited_layers():
        with layer.base_weight() as weight:
            base = torch.linalg.svdvals(weight.detach().float())
        raw = layer.prune_edit_update[adapter].raw_sum() or layer.effective_update(adapter)
        found[name] = {
            "base": base[:most].tolist(),
            "raw": raw.singular_values()[:most].tolist(),
            "effective": layer.effective_update(adapter).singular_values()[:most].tolist(),
        }
    return found


def selected(answers: RequestAnswers, indices: Sequence[int]) -> RequestAnswers:
    """The answers to some of the requests."""
    return RequestAnswers(
        **{part.name: tuple(getattr(answers, part.name)[index] for index in indices) for part in fields(answers)}
    )
