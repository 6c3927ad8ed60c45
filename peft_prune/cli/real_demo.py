"""The demonstration on a real language model: famous facts changed by MEMIT, without and with PRUNE, consolidated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import get_peft_model
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from ..consolidation import ConsolidationSettings
from ..editors import collect_second_moments, get_editor, own_texts
from ..evaluation import Fact, load_texts, recall, without_subjects
from ..evaluation.subjects import names_any
from ..models.generation import greedy_answers
from ..real import load_real_model, real_model
from ..requests import EditRequest, load_requests, read_records
from ..session import EditSession
from ..tuner import PruneEditConfig
from .demonstration import UNWATCHED, Course, agreement, compared, continued, edited, result, say_agreement
from .plain import plain, shows_progress
from .story import Told, heading, in_short, tell, three

BATCH = 10
"""Requests that MEMIT computes together."""
OWN_TOKENS = 5_000
"""Tokens of the model's own text that second moments are taken over."""
ANSWER_TOKENS = 16
COURSE_STEP = 2
"""Of the facts that are to stand, each second one is asked while editing, all of them in the end."""
CONSOLIDATION = ConsolidationSettings(steps=60, texts_per_step=4, neighbors_per_step=8, beta=1.0)
"""For a demonstration that is short: by its own rule it takes a hundred steps, each of which reads more."""
KEPT = {"kept": "Facts that no edit is about", "measured": "share still answered"}


CLOSING = "What was changed, and what all figures are by probability, is in demo.json."

Asked = dict[str, list[str]]
"""Answers to all requests, plain and in chat."""


@dataclass(frozen=True)
class Given:
    """What a demonstration works on.

    Args:
        model: Name of the real model.
        requests: The facts that are changed.
        questions: What a person would ask for each in chat.
        others: Facts that are to stand.
        texts: For perplexity.
    """

    model: str
    requests: tuple[EditRequest, ...]
    questions: tuple[str, ...]
    others: tuple[Fact, ...]
    texts: tuple[str, ...] | None


def require_real(model: str, requests: Path | None, text: Path | None, edits: int) -> Given:
    """What is asked for, read and checked before the model is made.

    Raises:
        UnsupportedModelError: There is no such real model.
        MissingPackageError: Its package is not installed.
        ValueError: No requests are given, or fewer than ``edits``.
        InvalidRequestError: A file is malformed.
    """
    real_model(model).parts()
    if requests is None:
        raise ValueError(f"requests: {model} needs facts to change, such as examples/facts.jsonl")
    found = load_requests(requests)
    if len(found) < edits:
        raise ValueError(f"edits: {edits} are asked for, {requests} holds {len(found)} facts")
    records = read_records(requests)
    asked = [record.get("question") for record in records] if len(records) == len(found) else [None] * len(found)
    questions = [str(question or request.text) for question, request in zip(asked, found, strict=True)]
    others = [Fact(one.text, one.target_true) for one in found[edits:] if one.target_true is not None]
    texts = None if text is None else tuple(load_texts(text))
    return Given(model, tuple(found[:edits]), tuple(questions[:edits]), tuple(others), texts)


def run_real(folder: Path, given: Given, alpha: float, console: Console) -> dict[str, Any]:
    """Edit, measure and show; the adapter and the figure are left in ``folder``.

    Args:
        folder: Where to.
        given: What `require_real` gave.
        alpha: Base of the restraint's logarithm.
        console: Where tables are shown.
    """
    base, tokenizer = load_real_model(given.model)
    requests = given.requests
    editor = get_editor("memit", model=base)
    texts = without_subjects(own_texts(base, tokenizer, OWN_TOKENS, progress=shows_progress(console.quiet)), requests)
    statistics = collect_second_moments(
        base, tokenizer, texts, editor.modules(base), progress=shows_progress(console.quiet)
    )
    layers = list(editor.admitted(base))
    options: dict[str, Any] = {"restraint": "log", "alpha": alpha, "restrain_on": "merge"}
    model = get_peft_model(base, PruneEditConfig(layers_to_transform=layers, task_type="CAUSAL_LM", **options)).eval()

    def kept() -> float:
        return recall(model, tokenizer, given.others[::COURSE_STEP]).value or 0.0

    course, quiet = Course(), console.quiet
    # in chat the demonstration asks for itself, once; all of it twice would take minutes
    material = {"ask": "plain", "facts": given.others or None, "texts": given.texts}
    # what is said in chat the consolidation sees to
    with EditSession(model, tokenizer, editor, statistics=statistics, search_ask="plain", **UNWATCHED) as session:
        outcomes = edited(session, requests, course, kept, quiet=quiet, batch_size=BATCH)
        found = compared(
            session, requests, lambda: _answers(model, tokenizer, given), CONSOLIDATION, quiet=quiet, **material
        )
    if not found.left_out:
        course.end(model, kept())
    answers = found.answers
    told = Told.all_of(outcomes, {moment: said["plain"] for moment, said in answers.items()})
    tell(console, told, found.columns, CLOSING, found.left_out)
    in_chat = {moment: _named(requests, said["chat"]) for moment, said in answers.items()}
    if answers["before"]["chat"]:
        console.print(_chat_table(given, answers, [told.index(one) for one in three(told)]))
        counts = ", ".join(f"{heading(moment, len(requests))} {count}" for moment, count in in_chat.items())
        console.print(f"Of {len(requests)} questions in chat, answers that name the new target: {counts}", markup=False)
    course.draw(console, folder / "course.png", **KEPT)
    differences = agreement(model, load_real_model(given.model)[0], tokenizer, requests, folder / "adapter")
    say_agreement(console, differences)
    made = result(told, outcomes, found, course, differences)
    return {"model": given.model, **made, "answers": answers, "named_in_chat": in_chat}


def _answers(model: Any, tokenizer: PreTrainedTokenizerBase, given: Given) -> Asked:
    """What the model says to every request, plainly and, where it has a template, in chat."""
    prompts = _in_chat(tokenizer, given.questions)
    chat = greedy_answers(model, tokenizer, prompts, max_new_tokens=ANSWER_TOKENS) if prompts else []
    return {"plain": continued(model, tokenizer, given.requests, ANSWER_TOKENS), "chat": chat}


def _in_chat(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]) -> list[str]:
    if not getattr(tokenizer, "chat_template", None):
        return []
    turns = [[{"role": "user", "content": question}] for question in questions]
    return [str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)) for turn in turns]


def _named(requests: Sequence[EditRequest], answers: Sequence[str]) -> int:
    """How many answers name the new target."""
    return sum(names_any(answer, [one.target_new]) for answer, one in zip(answers, requests, strict=bool(answers)))


def _chat_table(given: Given, answers: dict[str, Asked], places: Sequence[int]) -> Table:
    table = Table(title="Asked in chat", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for name in ("question", *(heading(moment, len(given.requests)) for moment in answers)):
        table.add_column(name, overflow="fold", ratio=1)
    for place in places:
        said = [plain(in_short(own["chat"][place]) or "–") for own in answers.values()]
        table.add_row(plain(given.questions[place]), *said, end_section=True)
    return table
