"""A page on which a visitor changes a fact of a language model, sees what that did, and takes it back.

It edits the built-in model, or the one that ``PEFT_PRUNE_MODEL`` names: a folder, or a name on the Hub.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

from peft_prune import EditSession, SecondMoments, collect_second_moments, get_editor, load_builtin_model, own_moments
from peft_prune.builtin import plain_texts
from peft_prune.models.generation import greedy_answers

MODEL = os.environ.get("PEFT_PRUNE_MODEL", "builtin")
TOKENS = 6
WORKER = ThreadPoolExecutor(1)
"""Everything is done here, one thing after another: the history of a session belongs to the thread that made it."""
EXAMPLE = ("Beladofax", "{} is based in", "Seloburg", "Beladofax has its headquarters in\nPelocorp is based in")
INTRODUCTION = f"""\
# Change a fact of a language model
Edits are low-rank updates in an adapter, beside the weights: see what one changes, how large it is, and take it back.
The model here is `{MODEL}`."""


@dataclass(frozen=True)
class Base:
    """What all visitors share: the model as it was trained, and what an editor has to know of it."""

    model: Any
    tokenizer: Any
    statistics: SecondMoments


@cache
def base() -> Base:
    """The model; the second moments of a model other than the built-in one come of texts that it writes itself."""
    if MODEL == "builtin":
        model, tokenizer = load_builtin_model()
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
        tokenizer = AutoTokenizer.from_pretrained(MODEL)
    modules = get_editor("memit", model=model).modules(model)
    if MODEL == "builtin":
        return Base(
            model, tokenizer, collect_second_moments(model, tokenizer, plain_texts(300), modules, progress=False)
        )
    return Base(model, tokenizer, own_moments(model, tokenizer, modules, progress=False))


def new_session() -> EditSession:
    """A visitor's own session. The weights are everybody's, for no edit ever writes to them."""
    shared = base()
    weights = {id(one): one for one in (*shared.model.parameters(), *shared.model.buffers())}
    return EditSession(copy.deepcopy(shared.model, weights), shared.tokenizer, "memit", statistics=shared.statistics)


def change(session: EditSession | None, subject: str, prompt: str, target: str) -> tuple[EditSession, str]:
    """Edit one fact; the session, and what became of the edit in one line."""
    session = session or new_session()
    record = {"prompt": prompt.strip(), "subject": subject.strip(), "target_new": target.strip()}
    try:
        (result,) = session.edit([record])
    except ValueError as error:
        return session, f"Not edited: {error}"
    if result.reason is not None:
        return session, f"Edit {result.id}, {result.status}: {result.reason}"
    return (
        session,
        f"Edit {result.id}, {result.status}: “{spoken(result.answer_before)}” → “{spoken(result.answer_after)}”",
    )


def spoken(answer: str | None) -> str:
    return (answer or "").strip()


def take_back(session: EditSession | None) -> tuple[EditSession | None, str]:
    """Undo the last edit that stands; the session, and what was done in one line."""
    standing = [] if session is None else [result for result in session.results if result.stands]
    if session is None or not standing:
        return session, "There is no edit to take back."
    session.undo(standing[-1].id, "asked for on the page")
    left = len(standing) - 1
    return session, f"Edit {standing[-1].id} is taken back; {left or 'no'} edit{'s' * (left != 1)} left."


def answers(session: EditSession | None, subject: str, prompt: str, others: str) -> list[list[str]]:
    """Rows of question, answer before all edits, and answer now; the edited fact comes first."""
    asked = [prompt.strip().replace("{}", subject.strip()), *map(str.strip, others.splitlines())]
    asked = [question for question in dict.fromkeys(asked) if question]
    if not asked:
        return []
    shared = base()
    before = greedy_answers(shared.model, shared.tokenizer, asked, max_new_tokens=TOKENS)
    now = before if session is None else greedy_answers(session.model, shared.tokenizer, asked, max_new_tokens=TOKENS)
    return [list(row) for row in zip(asked, before, now, strict=True)]


def sizes(session: EditSession | None) -> list[list[str]]:
    """Rows of layer, κ(W₀), κ(W₀ + ΔW), ‖ΔW‖_F and ‖ΔW‖₂ / σmax(W₀)."""
    found = {} if session is None else session.figures()
    return [
        [
            name,
            f"{one.condition_number_base:.1f}",
            f"{one.condition_number:.1f}",
            f"{one.delta_frobenius_norm:.2f}",
            f"{one.delta_spectral_norm / one.sigma_max_base:.2f}",
        ]
        for name, one in found.items()
    ]


def edits(session: EditSession | None) -> list[list[str]]:
    """Rows of number, fact and state of every edit."""
    rows = [] if session is None else session.results
    return [
        [str(one.id), f"{one.request.prompt.replace('{}', one.request.subject)} {one.request.target_new}", one.status]
        for one in rows
        if one.request is not None
    ]


def in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, done by the one worker."""

    @wraps(function)
    def handed_on(*given: Any) -> Any:
        return WORKER.submit(function, *given).result()

    return handed_on


def close(session: EditSession | None) -> None:
    """Forget a visitor who is gone."""
    if session is not None:
        session.close()


def page() -> Any:
    """The page, as a gradio application."""
    import gradio as gr

    with gr.Blocks(title="Change a fact of a language model") as blocks:
        gr.Markdown(INTRODUCTION)
        session = gr.State(None, delete_callback=in_turn(close))
        with gr.Row():
            subject = gr.Textbox(EXAMPLE[0], label="Subject")
            prompt = gr.Textbox(EXAMPLE[1], label="Sentence, with {} for the subject")
            target = gr.Textbox(EXAMPLE[2], label="What it shall say")
        others = gr.Textbox(
            EXAMPLE[3], label="Ask as well, one to a line: other words for it, and other subjects", lines=3
        )
        with gr.Row():
            ask = gr.Button("Ask")
            edit = gr.Button("Change it", variant="primary")
            undo = gr.Button("Take the last one back")
        said = gr.Markdown()
        asked = gr.Dataframe(headers=["question", "before", "now"], label="Answers", interactive=False, wrap=True)
        with gr.Row():
            made = gr.Dataframe(headers=["edit", "fact", "state"], label="Edits", interactive=False, wrap=True)
            names = ["layer", "κ(W₀)", "κ(W₀ + ΔW)", "‖ΔW‖_F", "‖ΔW‖₂ / σmax(W₀)"]
            size = gr.Dataframe(headers=names, label="Size of all edits together", interactive=False, wrap=True)
        question = [session, subject, prompt, others]
        ask.click(in_turn(answers), question, asked)
        done = edit.click(in_turn(change), [session, subject, prompt, target], [session, said])
        back = undo.click(in_turn(take_back), session, [session, said])
        for event in (done, back):
            event.then(in_turn(answers), question, asked)
            event.then(in_turn(edits), session, made).then(in_turn(sizes), session, size)
    return blocks


if __name__ == "__main__":
    base()
    page().launch()
