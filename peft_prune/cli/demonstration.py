"""What the demonstrations on the built-in and on a real model have in common: course, columns and tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..consolidation import ConsolidationSettings
from ..errors import EditFailedError, MissingPackageError, SessionStateError
from ..evaluation import Evaluation
from ..models.generation import greedy_answers
from ..models.inference import undisturbed
from ..monitoring import BatchReport, LayerCondition, SessionCallback, layer_conditions
from ..reporting.plots import plot_course
from ..requests import EditRequest
from ..session import EditResult, EditSession
from .plain import shows_progress
from .progress import progress_bar
from .story import BEFORE, CONSOLIDATED, EDITED, RESTRAINED, Column, Told, figures_of, three, what_happened

Answers = TypeVar("Answers")
UNWATCHED: Mapping[str, Any] = {"monitor": False, "look_again": False}
"""Options of a demonstration's session, which looks for itself."""


@dataclass
class Course:
    """Figures after so many edits, without and with the restraint: condition number, and what is to be kept.

    Those of the consolidated model are of all edits only.
    """

    edits: list[int] = field(default_factory=list)
    condition: dict[str, list[float]] = field(default_factory=lambda: {"edited": [], "PRUNE": []})
    ability: dict[str, list[float]] = field(default_factory=lambda: {"edited": [], "PRUNE": []})

    def measure(self, model: Any, edits: int, kept: Callable[[], float]) -> None:
        """One point; the restraint is tried on the raw sum and taken back.

        Args:
            model: The edited model.
            edits: Number of edits in it.
            kept: What is to be kept of it, as a share.
        """
        self.edits.append(edits)
        raw = model.edit_state()
        self._add("edited", model, kept())
        if edits:
            model.restrain()
        self._add("PRUNE", model, kept() if edits else self.ability["edited"][-1])
        model.restore_edit_state(raw)

    def end(self, model: Any, kept: float) -> None:
        """The last point, of the consolidated model."""
        self._add(CONSOLIDATED, model, kept)

    def _add(self, name: str, model: Any, kept: float) -> None:
        condition = max(c.condition_number for c in layer_conditions(model).values())
        self.condition.setdefault(name, []).append(condition)
        self.ability.setdefault(name, []).append(kept)

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
        self, course: Course, total: int, progress: Callable[[str, int, int], None], kept: Callable[[], float]
    ) -> None:
        self._course, self._total, self._progress, self._kept, self._done = course, total, progress, kept, 0

    def on_batch_end(self, session: Any, report: BatchReport) -> None:
        self._done += len(report.results)
        self._progress("Editing", self._done, self._total)
        if self._done % 10 == 0 or self._done == self._total:
            self._course.measure(session.model, self._done, self._kept)


def edited(
    session: EditSession,
    requests: Sequence[EditRequest],
    course: Course,
    kept: Callable[[], float],
    *,
    quiet: bool,
    batch_size: int = 1,
) -> list[EditResult]:
    """Edit, with a bar, and take the course.

    Args:
        session: Of a fresh adapter.
        requests: The edits.
        course: It is filled.
        kept: What is to be kept of the session's model, as it is, as a share.
        quiet: Show no bar.
        batch_size: Requests that are computed together.
    """
    with progress_bar(quiet=quiet) as progress:
        progress("Editing", 0, len(requests))
        course.measure(session.model, 0, kept)
        session.callbacks.append(CourseWatch(course, len(requests), progress, kept))
        return session.edit(requests, batch_size=batch_size)


@dataclass
class Compared(Generic[Answers]):
    """What was measured and answered at each moment.

    Args:
        columns: Figures of the model and of its layers by moment.
        answers: What was answered by moment.
        steps: Of the consolidation; 0 where it was left out.
        left_out: Why it was; empty where it was not.
    """

    columns: dict[str, Column] = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)
    steps: int = 0
    left_out: str = ""


def compared(
    session: EditSession,
    requests: Sequence[EditRequest],
    asked: Callable[[], Answers],
    settings: ConsolidationSettings,
    *,
    quiet: bool,
    **material: Any,
) -> Compared[Answers]:
    """The model before its edits, with them, restrained and consolidated, as which it is left.

    A consolidation after which fewer edits would hold is left out, and the model is left restrained.

    Args:
        session: Whose model is edited, and whose restraint is pending.
        requests: Its edits.
        asked: What the model, as it is, answers to them.
        settings: How it is consolidated.
        quiet: Show no bar.
        material: What `evaluate` measures by.
    """
    model, found = session.model, Compared[Answers]()
    evaluation = Evaluation(model, session.tokenizer, requests, **material)

    def look(moment: str) -> dict[str, Any]:
        with progress_bar(quiet=quiet) as progress, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="a restraint is pending")  # the next column has it applied
            figures = evaluation.now(progress=progress)
        found.columns[moment] = figures["after"], _layers(model)
        found.answers[moment] = asked()
        return figures

    found.answers[BEFORE] = without(model, asked)
    figures = look(EDITED)
    base = {name: _base_of(own) for name, own in found.columns[EDITED][1].items()}
    found.columns = {BEFORE: (figures["before"], base), **found.columns}
    session.restrain()
    look(RESTRAINED)
    try:
        found.steps = session.consolidate(settings=settings, progress=shows_progress(quiet)).steps
    except (EditFailedError, SessionStateError) as error:
        found.left_out = str(error).removeprefix("consolidation: ")
    else:
        look(CONSOLIDATED)
    return found


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
    found: Compared[Any],
    course: Course,
    differences: dict[str, float],
) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    held = {moment: sum(one.holds(moment) for one in told) for moment in found.columns}
    return {
        "requested": len(outcomes),
        "applied": sum(one.took for one in told),
        "held": held[EDITED],
        "held_restrained": held[RESTRAINED],
        "held_consolidated": held.get(CONSOLIDATED),
        "consolidation": {"steps": found.steps, "left_out": found.left_out or None},
        "failed": [{"index": o.id - 1, "reason": o.reason} for o in outcomes if not o.took],
        "shown": [one.request.text for one in three(told)],
        "ask": next((one for one in told if one.states[-1]), told[0]).request.text,
        "story": what_happened(told, figures_of(found.columns), found.left_out),
        "columns": {name: {**figures, "layers": layers} for name, (figures, layers) in found.columns.items()},
        "course": asdict(course),
        "logit_difference": differences,
    }
