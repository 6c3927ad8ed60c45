"""What the demonstrations on the built-in and on a real model have in common: course, columns and tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import MissingPackageError
from ..evaluation import evaluate
from ..models.generation import greedy_answers
from ..models.inference import undisturbed
from ..monitoring import BatchReport, LayerCondition, SessionCallback, layer_conditions
from ..reporting.plots import plot_course
from ..requests import EditRequest
from ..session import EditResult
from .progress import progress_bar
from .story import Column, Told, figures_of, three, what_happened

Answers = TypeVar("Answers")
RESTRAINED = "edited with PRUNE"
"""What the column is called in which the restraint acts."""


@dataclass
class Course:
    """Figures after so many edits, without and with the restraint: condition number, and what is to be kept."""

    edits: list[int] = field(default_factory=list)
    condition: dict[str, list[float]] = field(default_factory=lambda: {"edited": [], "PRUNE": []})
    ability: dict[str, list[float]] = field(default_factory=lambda: {"edited": [], "PRUNE": []})

    def measure(self, model: Any, edits: int, kept: Callable[[Any], float]) -> None:
        """One point; the restraint is tried on the raw sum and taken back.

        Args:
            model: The edited model.
            edits: Number of edits in it.
            kept: What is to be kept, as a share.
        """
        self.edits.append(edits)
        raw = model.edit_state()
        self._add("edited", model, kept(model))
        if edits:
            model.restrain()
        self._add("PRUNE", model, kept(model) if edits else self.ability["edited"][-1])
        model.restore_edit_state(raw)

    def _add(self, name: str, model: Any, kept: float) -> None:
        self.condition[name].append(max(c.condition_number for c in layer_conditions(model).values()))
        self.ability[name].append(kept)

    def draw(self, console: Console, path: Path, **labels: str) -> None:
        """Draw it, or say why not."""
        try:
            plot_course(self.edits, self.condition, self.ability, path, **labels)
            console.print(f"Figure: {path.name}")
        except MissingPackageError as error:
            console.print(f"No figure: {error}", markup=False)


class CourseWatch(SessionCallback):
    """Moves the bar, and takes a point of the course every ten edits."""

    def __init__(
        self, course: Course, total: int, progress: Callable[[str, int, int], None], kept: Callable[[Any], float]
    ) -> None:
        self._course, self._total, self._progress, self._kept, self._done = course, total, progress, kept, 0

    def on_batch_end(self, session: Any, report: BatchReport) -> None:
        self._done += len(report.results)
        self._progress("Editing", self._done, self._total)
        if self._done % 10 == 0 or self._done == self._total:
            self._course.measure(session.model, self._done, self._kept)


def compared(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    between: Callable[[], None] = lambda: None,
    *,
    quiet: bool,
    **material: Any,
) -> dict[str, Column]:
    """The table's columns: figures of the base, the edited and the restrained model, and their layers.

    Args:
        model: The edited model; it is left restrained.
        tokenizer: Its tokenizer.
        requests: Its edits.
        between: Called before the restraint acts.
        quiet: Show no bar.
        material: What `evaluate` measures by.
    """
    columns = {}
    with progress_bar(quiet=quiet) as progress:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="a restraint is pending")  # the next column has it applied
            edited = evaluate(model, tokenizer, requests, progress=progress, **material)
        columns["edited"] = edited["after"], _layers(model)
        between()
        model.restrain()
        restrained = evaluate(model, tokenizer, requests, progress=progress, **material)
        columns[RESTRAINED] = restrained["after"], _layers(model)
    base = {name: _base_of(figures) for name, figures in columns["edited"][1].items()}
    return {"before": (edited["before"], base), **columns}


def _layers(model: Any) -> dict[str, Any]:
    return {name: asdict(condition) for name, condition in layer_conditions(model).items()}


def _base_of(figures: dict[str, Any]) -> dict[str, Any]:
    none = dict.fromkeys(("edits", "rank", "delta_spectral_norm", "delta_frobenius_norm", "perturbation_bound"), 0)
    none |= {"energy_top": 0, "energy_bottom": 0}
    return asdict(LayerCondition(**{**figures, **none, "condition_number": figures["condition_number_base"]}))


def continued(
    model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], tokens: int
) -> list[str]:
    """What the model says behind each request's prompt, freely."""
    return greedy_answers(model, tokenizer, [request.text for request in requests], max_new_tokens=tokens)


def without(model: Any, asked: Callable[[], Answers]) -> Answers:
    """What is answered without the edits."""
    with undisturbed(model), model.disable_adapter():
        return asked()


def agreement(
    model: Any, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], folder: Path
) -> dict[str, float]:
    """Save, reload on a fresh ``base``, merge; the largest differences of a logit on the edited prompts."""
    model.save_pretrained(str(folder))
    reloaded = PeftModel.from_pretrained(base, str(folder), strict_base=True).eval()
    ids = [torch.tensor([tokenizer(request.text)["input_ids"]]) for request in requests]
    with torch.no_grad():
        unmerged = [model(input_ids=x).logits for x in ids]
        again = [reloaded(input_ids=x).logits for x in ids]
        merged_model = reloaded.merge_and_unload(safe_merge=True)
        merged = [merged_model(input_ids=x).logits for x in ids]
    return {
        "reloaded": max(float((a - b).abs().max()) for a, b in zip(unmerged, again, strict=True)),
        "merged": max(float((a - b).abs().max()) for a, b in zip(unmerged, merged, strict=True)),
    }


def say_agreement(console: Console, found: dict[str, float]) -> None:
    """What `agreement` found, in a sentence."""
    console.print(
        "The same adapter unmerged, reloaded and merged: largest difference of a logit "
        f"{found['reloaded']:.1e} after reloading, {found['merged']:.1e} after merging",
        highlight=False,
    )


def result(
    told: Sequence[Told],
    outcomes: Sequence[EditResult],
    columns: dict[str, Column],
    course: Course,
    differences: dict[str, float],
) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    return {
        "requested": len(outcomes),
        "applied": sum(one.took for one in told),
        "held": sum(one.holds for one in told),
        "held_restrained": sum(one.holds_restrained for one in told),
        "failed": [{"index": o.id - 1, "reason": o.reason} for o in outcomes if not o.took],
        "shown": [one.request.text for one in three(told)],
        "ask": next((one for one in told if one.holds_restrained), told[0]).request.text,
        "story": what_happened(told, figures_of(columns)),
        "columns": {name: {**figures, "layers": layers} for name, (figures, layers) in columns.items()},
        "course": asdict(course),
        "logit_difference": differences,
    }
