"""Everything measured on a model before and after its edits, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..editors.asking import default_ask, settled
from ..models.inference import Progress, undisturbed
from ..requests import EditRequest
from .abilities import EXTRACTORS, STOPS, score_ability, whole_answer
from .editing import RequestAnswers, request_answers, request_outcomes
from .estimates import Mean, Proportion
from .facts import Fact, exclude_subjects, recall
from .fluency import request_entropies
from .perplexity import perplexity
from .scores import SCORED, differences, harmonic_score
from .tasks import Ability, measure_ability
from .visibility import require_visible_edits, warn_of_pending_restraint

StageProgress = Callable[[str, int, int], None]


def evaluate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    facts: Sequence[Fact] | None = None,
    texts: Sequence[str] | None = None,
    abilities: Mapping[str, Sequence[Mapping[str, str]] | Ability] | None = None,
    full: bool = False,
    fluency_tokens: int = 0,
    batch_size: int = 64,
    ask: str | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Measure a model before and after its edits.

    "Before" is the base model itself: the same PEFT model with its adapter disabled. "After" is the model with the
    adapter active. A model without an adapter counts as a base, and both columns are its own figures.

    Args:
        model: A PEFT model with an unmerged, active adapter, or a plain causal language model.
        tokenizer: Its tokenizer.
        requests: The edits to score.
        facts: For ``recall``; those that name an edited subject are left out.
        texts: For ``perplexity``.
        abilities: By name, an :class:`~peft_prune.evaluation.Ability`, or items with ``prompt`` and ``answer``; for
            these the name also picks the extractor (:data:`~peft_prune.evaluation.EXTRACTORS`), any other name compares
            the whole answer.
        full: Add ``score`` and ``score_greedy`` to both moments, and a third entry "difference".
        fluency_tokens: Tokens generated for each request's ``fluency``; 0 leaves it out, since it takes longer than all
            else together.
        batch_size: Most prompts in one batch.
        ask: "plain", "chat" or "both" for requests that do not say it themselves; both if not given and the model has
            a chat template. The plain figures are always taken, those in chat of requests that are asked so.
        progress: Called with the name of what is being measured, the number of prompts done and their total.

    Returns:
        ``{"n_requests", "before": M, "after": M}``, ready for JSON. M holds ``efficacy``, ``efficacy_greedy``,
        ``generalization``, ``generalization_greedy``, ``locality``, ``locality_greedy`` and ``recall``, each
        ``{"value", "n", "low", "high"}``; ``perplexity``, a number or None where no text was given; and ``abilities``
        by name where some were given; ``portability_greedy`` where a request has portability questions;
        ``efficacy_chat``, ``generalization_chat`` and ``locality_chat`` where a request is asked in chat. In
        "before", ``locality_greedy`` is 1 by definition. With ``full``, "difference" holds for every figure of the
        edited facts "after" minus "before" on the same prompts, with the bootstrap interval over requests.

    Raises:
        InvalidRequestError: A prompt, a target, a fact or an item cannot be used; the message names it.
        ValueError: The adapter is merged or disabled, so that the base or the edits could not be seen.
    """
    measured = Evaluation(
        *(model, tokenizer, requests),
        facts=facts,
        texts=texts,
        abilities=abilities,
        fluency_tokens=fluency_tokens,
        batch_size=batch_size,
        ask=ask,
    )
    return measured.now(full=full, progress=progress)


class Evaluation:
    """`evaluate`, as often as the model's edits change; its base is measured once.

    Args:
        model: As for `evaluate`.
        tokenizer: Its tokenizer.
        requests: The edits to score.
        ask: As for `evaluate`.
        facts: As for `evaluate`.
        material: What else `evaluate` measures by.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        *,
        ask: str | None = None,
        facts: Sequence[Fact] | None = None,
        **material: Any,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._requests = settled(requests, default_ask(tokenizer, ask))
        self._material = {"facts": None if facts is None else exclude_subjects(facts, self._requests), **material}
        self._base: _Measured | None = None

    def now(self, *, full: bool = False, progress: StageProgress | None = None) -> dict[str, Any]:
        """What `evaluate` returns, of the model as it is.

        Args:
            full: As for `evaluate`.
            progress: As for `evaluate`.

        Raises:
            InvalidRequestError: A prompt, a target, a fact or an item cannot be used; the message names it.
            ValueError: The adapter is merged or disabled, so that the base or the edits could not be seen.
        """
        model, given = self._model, (self._model, self._tokenizer, self._requests)
        if isinstance(model, PeftModel):
            require_visible_edits(model)
            warn_of_pending_restraint(model)
        with undisturbed(model):
            if self._base is None:
                with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
                    self._base = _measure(*given, "before", **self._material, progress=progress)
            after = before = self._base
            if isinstance(model, PeftModel):
                after = _measure(*given, "after", before.answers, **self._material, progress=progress)
        result = {"n_requests": len(self._requests), "before": before.figures(full), "after": after.figures(full)}
        if full:
            gaps = differences(after.outcomes, before.outcomes)
            result["difference"] = {kind: gap.to_json() for kind, gap in gaps.items() if gap.n}
        return result


@dataclass(frozen=True)
class _Measured:
    """What was answered, the outcomes of the edited facts, and everything else as figures."""

    answers: RequestAnswers
    outcomes: Mapping[str, Sequence[tuple[float, ...]]]
    general: Mapping[str, Any]

    def figures(self, full: bool) -> dict[str, Any]:
        names = [f"{kind}{form}" for kind in SCORED for form in ("", "_greedy")]
        names += [f"{kind}_chat" for kind in SCORED if any(self.outcomes.get(f"{kind}_chat", ()))]
        if any(self.outcomes["portability_greedy"]):
            names.append("portability_greedy")
        shares = {name: Proportion.of_clusters(self.outcomes[name]).to_json() for name in names}
        for form in ("", "_greedy") if full else ():
            shares[f"score{form}"] = harmonic_score(self.outcomes, greedy=bool(form)).to_json()
        if "fluency" in self.outcomes:
            shares["fluency"] = Mean.of(chain.from_iterable(self.outcomes["fluency"])).to_json()
        return shares | dict(self.general)


def _measure(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    moment: str,
    base_answers: RequestAnswers | None = None,
    *,
    facts: Sequence[Fact] | None = None,
    texts: Sequence[str] | None = None,
    abilities: Mapping[str, Sequence[Mapping[str, str]] | Ability] | None = None,
    fluency_tokens: int = 0,
    batch_size: int = 64,
    progress: StageProgress | None = None,
) -> _Measured:
    def on(name: str) -> dict[str, Any]:
        return {"batch_size": batch_size, "progress": _stage(progress, f"{moment}: {name}")}

    answers = request_answers(model, tokenizer, requests, **on("answers"))
    seen: dict[str, Any] = {"answers": answers, "base_answers": base_answers or answers}
    outcomes: dict[str, Sequence[tuple[float, ...]]] = dict(
        request_outcomes(model, tokenizer, requests, **seen, **on("probabilities"))
    )
    if fluency_tokens:
        entropies = request_entropies(model, tokenizer, requests, max_new_tokens=fluency_tokens, **on("fluency"))
        outcomes["fluency"] = [(value,) for value in entropies]
    recalled = recall(model, tokenizer, facts, **on("recall")) if facts else Proportion.of(())
    figures: dict[str, Any] = {"recall": recalled.to_json()}
    figures["perplexity"] = perplexity(model, tokenizer, texts, **on("perplexity")) if texts else None
    if abilities:
        figures["abilities"] = {}
        for name, given in abilities.items():
            figures["abilities"] |= _ability(model, tokenizer, name, given, on(name))
    return _Measured(answers, outcomes, figures)


def _ability(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    given: Sequence[Mapping[str, str]] | Ability,
    options: dict[str, Any],
) -> dict[str, Any]:
    """An ability's figures by name; of several metrics each stands behind a stroke, as ``summarization/rouge1``."""
    if not isinstance(given, Ability):
        options |= {"extract": EXTRACTORS.get(name, whole_answer), "stop": STOPS.get(name, "\n")}
        return {name: score_ability(model, tokenizer, given, **options).to_json()}
    measured = measure_ability(model, tokenizer, given, **options)
    several = len(measured) > 1
    return {f"{name}/{metric}" if several else name: figure.to_json() for metric, figure in measured.items()}


def _stage(progress: StageProgress | None, name: str) -> Progress | None:
    return None if progress is None else partial(progress, name)
