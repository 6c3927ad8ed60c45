"""What a model does now: looked at for a report, without writing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..evaluation import Ability, Fact, evaluate
from ..evaluation.evaluate import StageProgress
from ..monitoring import LayerCondition, Monitor
from ..requests import EditRequest
from ..requests.asking import PLAIN
from ..session import Verification, verify


@dataclass(frozen=True)
class Now:
    """An edited model at the time of the report.

    Args:
        figures: Of every layer, by module name.
        spectra: Singular values of the effective update and σmax(W0), by module name.
        verification: What the model says to each edit, by the edit's number.
        evaluation: Of `evaluate`, on the edits that stand.
    """

    figures: Mapping[str, LayerCondition]
    spectra: Mapping[str, tuple[Sequence[float], float]]
    verification: Mapping[int, Verification]
    evaluation: Mapping[str, Any] | None

    @classmethod
    def of(
        cls,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Mapping[int, EditRequest],
        *,
        facts: Sequence[Fact] | None = None,
        texts: Sequence[str] | None = None,
        abilities: Mapping[str, Ability] | None = None,
        progress: StageProgress | None = None,
    ) -> Now:
        """Look at a PEFT model with an active adapter.

        Args:
            model: The edited model.
            tokenizer: Its tokenizer.
            requests: What was edited, by the edit's number.
            facts: For recall.
            texts: For perplexity.
            abilities: General abilities by name.
            progress: As in `evaluate`.
        """
        adapter = model.one_adapter(None)
        asked = list(requests.values())
        answers = verify(model, tokenizer, asked)
        measured = None
        if asked or facts or texts or abilities:
            measured = evaluate(
                model,
                tokenizer,
                asked,
                facts=facts,
                texts=texts,
                abilities=abilities,
                full=True,
                ask=PLAIN,
                progress=progress,
            )
        return cls(
            figures=Monitor(model).figures(),
            spectra={
                name: (layer.effective_update(adapter).singular_values().tolist(), layer.sigma_max_base())
                for name, layer in model.edited_layers()
            },
            verification=dict(zip(requests, answers, strict=True)),
            evaluation=measured,
        )
