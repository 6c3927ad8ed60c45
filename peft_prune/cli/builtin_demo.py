"""The demonstration on the built-in model, on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import get_peft_model
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..builtin import ability_items, ability_names, edit_requests, held_out_texts, load_builtin_model, plain_texts
from ..consolidation import ConsolidationSettings
from ..editors import Editor, SecondMoments, collect_second_moments, get_editor
from ..evaluation import EXTRACTORS, score_ability, without_subjects
from ..requests import EditRequest
from ..session import EditSession
from ..tuner import PruneEditConfig
from .demonstration import UNWATCHED, Course, agreement, compared, continued, edited, result, say_agreement
from .plain import shows_progress
from .story import Told, tell

LAYER = 0
"""Edits of the built-in model hardly take in its later layers."""
TEXTS = 3000
ANSWER_TOKENS = 12
CONSOLIDATION = ConsolidationSettings()
CLOSING = (
    "So small a model wears out far sooner than a real one: its names are built from few syllables, so that an edit of "
    "one reaches others."
)


def run_builtin(folder: Path, edits: int, alpha: float, items: int, console: Console) -> dict[str, Any]:
    """Edit, compare and draw; what `peft-prune demo` writes into demo.json."""
    base, tokenizer = load_builtin_model()
    requests = [EditRequest.from_record(record) for record in edit_requests(edits)]
    editor = get_editor("rome", model=base, layers=(LAYER,))
    config = PruneEditConfig(
        restraint="log",
        alpha=alpha,
        restrain_on="merge",
        layers_to_transform=list(editor.layers(base)),
        task_type="CAUSAL_LM",
    )
    statistics = _statistics(base, tokenizer, editor, requests, console.quiet)
    model = get_peft_model(base, config)

    def kept() -> float:
        return _mean_ability(model, tokenizer)

    def answers() -> list[str]:
        return continued(model, tokenizer, requests, ANSWER_TOKENS)

    course, quiet = Course(), console.quiet
    abilities = {name: ability_items(name, items, held_out=True, seed=1) for name in ability_names()}
    material = {"texts": held_out_texts(), "abilities": abilities}
    with EditSession(model, tokenizer, editor, statistics=statistics, **UNWATCHED) as session:
        outcomes = edited(session, requests, course, kept, quiet=quiet)
        found = compared(session, requests, answers, CONSOLIDATION, quiet=quiet, **material)
    if not found.left_out:
        course.end(model, kept())
    told = Told.all_of(outcomes, found.answers)
    tell(console, told, found.columns, CLOSING, found.left_out)
    course.draw(console, folder / "course.png")
    differences = agreement(model, load_builtin_model()[0], tokenizer, requests, folder / "adapter")
    say_agreement(console, differences)
    return result(told, outcomes, found, course, differences)


def _statistics(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    editor: Editor,
    requests: list[EditRequest],
    quiet: bool,
) -> SecondMoments:
    texts = without_subjects(plain_texts(TEXTS), requests)
    return collect_second_moments(base, tokenizer, texts, editor.modules(base), progress=shows_progress(quiet))


def _mean_ability(model: Any, tokenizer: PreTrainedTokenizerBase, items: int = 25) -> float:
    scores = [
        score_ability(model, tokenizer, ability_items(name, items, held_out=True), extract=EXTRACTORS[name]).value
        for name in ability_names()
    ]
    return sum(score or 0.0 for score in scores) / len(scores)
