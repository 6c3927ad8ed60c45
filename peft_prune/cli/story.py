"""What the demonstrations tell: three edited sentences, what became of all of them, what was kept and what it cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..evaluation.kinds import kind_of
from ..evaluation.table import figure_value, flat_figures
from ..models.answers import answers_with, first_sentence, whole_words
from ..reporting.hundreds import fewer, hundreds
from ..reporting.words import count, listed, number
from ..requests import EditRequest
from ..session import EditResult
from .plain import plain

BEFORE, EDITED, RESTRAINED, CONSOLIDATED = "before", "edited", "edited with PRUNE", "consolidated"
"""The moments, in their order: the base, after all edits, with the restraint, trained together within it."""
STAGES: Mapping[str, str] = {RESTRAINED: "The restraint", CONSOLIDATED: "Consolidation"}
"""What acts between a moment and the one before."""
SHOWN = 3
LEAST = 0.005
"""What is said to be worse or better differs by half of a hundredth at least."""
NAMES: Mapping[str, str] = {
    "efficacy_greedy": "edits that hold",
    "generalization_greedy": "the same in other words",
    "portability_greedy": "what follows from edits",
    "locality_greedy": "answers on other subjects that stayed",
    "recall": "facts that no edit is about",
    "perplexity": "perplexity of plain text (lower is better)",
}
OPENING = (
    "{} were changed one after another, each checked right after its edit. Then PRUNE's restraint shrank the sum of "
    "all edits where it had grown larger than the layer that was edited."
)
LAST = " Last, consolidation trained that sum on all edits together, without letting it grow again."
BARGAIN = "How much to give for how much is --alpha: a larger one restrains more."
_OF_EDITS = ("generalization_greedy", "portability_greedy")
_LEFT_OUT = ("efficacy", "generalization", "locality", "score", "fluency")

Column = tuple[dict[str, Any], dict[str, Any]]
"""Figures of a model, and those of its edited layers."""


@dataclass(frozen=True)
class Told:
    """One edit as the model answers it at each moment.

    Args:
        request: The edit.
        took: Whether the model gave the new answer right after the edit.
        answers: Free answers by moment.
    """

    request: EditRequest
    took: bool
    answers: Mapping[str, str]

    @classmethod
    def all_of(cls, outcomes: Sequence[EditResult], answers: Mapping[str, Sequence[str]]) -> list[Told]:
        """All edits of a session with what was answered to them at each moment."""
        rows = zip(outcomes, *answers.values(), strict=True)
        return [
            cls(one.request, one.took, dict(zip(answers, said, strict=True)))
            for one, *said in rows
            if one.request is not None
        ]

    def holds(self, moment: str) -> bool:
        """Whether the new answer is given at a moment."""
        return answers_with(self.answers[moment], self.request.target_new)

    @property
    def states(self) -> tuple[bool, ...]:
        """Whether it holds, at each moment after the edits."""
        return tuple(self.holds(moment) for moment in self.answers if moment != BEFORE)


def tell(console: Console, told: Sequence[Told], columns: Mapping[str, Column], closing: str, missing: str) -> None:
    """Print the whole story.

    Args:
        console: Where.
        told: All edits.
        columns: Figures of the model and of its layers by moment.
        closing: A last sentence.
        missing: Why the model was not consolidated; empty where it was.
    """
    figures, n = figures_of(columns), len(told)
    say_lines(console, OPENING.format(count(n, "fact")) + (LAST if CONSOLIDATED in columns else ""), "")
    console.print(sentences_table(three(told), n))
    console.print("What happened", style="bold", highlight=False)
    for sentence in (*what_happened(told, figures, missing), BARGAIN, closing):
        say_lines(console, sentence, "* ")
    console.print()
    console.print(figures_table(figures, n))
    console.print(layers_table(columns, n))


def figures_of(columns: Mapping[str, Column]) -> dict[str, Any]:
    """Of columns, the figures of the model."""
    return {name: figures for name, (figures, _) in columns.items()}


def heading(moment: str, edits: int) -> str:
    """What a table's column of a moment is called."""
    return {EDITED: count(edits, "edit"), RESTRAINED: "with PRUNE"}.get(moment, moment)


def three(told: Sequence[Told]) -> list[Told]:
    """Three edits that show what can become of one: the first of each kind, then the first of the rest.

    The kinds: at which moments it holds; those that hold at the earlier ones come first.
    """
    took = [one for one in told if one.took]
    found: list[Told] = []
    for kind in product((True, False), repeat=len(told[0].states)):
        found += [one for one in took if one.states == kind][:1]
    for one in (*took, *told):
        if one not in found:
            found.append(one)
    return sorted(found[:SHOWN], key=told.index)


def sentences_table(shown: Sequence[Told], edits: int) -> Table:
    """The sentences that were edited, and how the model ends them at each moment."""
    title = f"{['', 'One', 'Two', 'Three'][len(shown)]} of the {edits} edited sentences, and how the model ends them"
    table = _table(title)
    table.add_column("sentence and its new end", overflow="fold", ratio=3)
    for moment in shown[0].answers:
        table.add_column(heading(moment, edits), overflow="fold", ratio=2)
    for one in shown:
        asked = f"{one.request.text} … → {one.request.target_new}"
        said = [in_short(answer, one.request.target_new) or "–" for answer in one.answers.values()]
        states = ["", *map(_state, one.states)]
        cells = [f"{answer}\n{state}".strip() for answer, state in zip(said, states, strict=True)]
        table.add_row(*(plain_lines(cell) for cell in (asked, *cells)), end_section=True)
    return table


def in_short(answer: str, target: str | None = None) -> str:
    """The first sentence of an answer, or of one that was cut off before its end the whole words."""
    sentence = first_sentence(answer)
    return sentence if len(sentence) < len(" ".join(answer.split())) else whole_words(answer, target)


def plain_lines(text: str) -> Any:
    """`plain`, with the line breaks that are meant."""
    from rich.text import Text

    return Text("\n").join(plain(line) for line in text.split("\n"))


def what_happened(told: Sequence[Told], columns: Mapping[str, Mapping[str, Any]], missing: str = "") -> list[str]:
    """What became of the edits and of the rest of the model, in sentences, with the figures of this run.

    Args:
        told: All edits.
        columns: Figures by moment.
        missing: Why the model was not consolidated; empty where it was.
    """
    flat = {moment: flat_figures(figures) for moment, figures in columns.items()}
    said = [_of_edits(told), _of_wear(flat)]
    said += [_of_stage(told, flat, *moments) for moments in pairwise(flat) if BEFORE not in moments]
    return said + ([f"Consolidation was tried and left out: {missing}."] if missing else [])


def _changed(flat: Mapping[str, Mapping[str, Any]], old: str, new: str) -> dict[str, tuple[float, float]]:
    """What each figure was at one moment and is at another; of edits that hold, more is told elsewhere."""
    found = {}
    for name in flat[old]:
        was, now = (figure_value(flat[moment].get(name)) for moment in (old, new))
        if was is not None and now is not None and name not in (*_LEFT_OUT, "efficacy_greedy") and "_chat" not in name:
            found[name] = float(was), float(now)
    return found


def better(name: str, value: float, other: float) -> bool:
    """Whether a figure is better than another of its kind by more than `LEAST`, of what is no share by that share."""
    gap = value - other if kind_of(name).higher_is_better else other - value
    return gap > LEAST * (1.0 if kind_of(name).bounds else abs(other))


def _of_edits(told: Sequence[Told]) -> str:
    n, took = len(told), [one for one in told if one.took]
    first = f"All {n} edits took" if len(took) == n else f"{len(took)} of {n} edits took"
    said = f"{first}: right after each edit, the model gave the new answer."
    held, lost = sum(one.holds(EDITED) for one in told), [one for one in took if not one.holds(EDITED)]
    if not lost:
        return f"{said} After all {n} edits, {'each of them' if held == n else 'each that took'} still holds."
    verb = "holds" if held == 1 else "hold"
    said += f" After all {n} edits, {held} still {verb}: edits made later changed what the model says to the other"
    said += f" {len(lost)}." if len(lost) > 1 else " one."
    others = sum(_is_of_another(one, told) for one in lost)
    if others:
        said += f" To {others} of these it now gives the new answer of another edit."
    return said + " None of this is the restraint's doing, which came after."


def _is_of_another(one: Told, told: Sequence[Told]) -> bool:
    targets = {other.request.target_new for other in told} - {one.request.target_new}
    return any(answers_with(one.answers[EDITED], target) for target in targets)


def _of_wear(flat: Mapping[str, Mapping[str, Any]]) -> str:
    changed = _changed(flat, BEFORE, EDITED)
    worn = {name: own for name, own in changed.items() if name not in _OF_EDITS and better(name, *own)}
    if not worn:
        return "To the rest of the model the edits did no harm that was measured here."
    return f"To the rest of the model the edits did harm: {_list(worn)}."


def _of_stage(told: Sequence[Told], flat: Mapping[str, Mapping[str, Any]], old: str, new: str) -> str:
    """What acted between two moments, and what of the edits and of the rest is better or worse for it."""
    lost = sum(one.holds(old) and not one.holds(new) for one in told)
    back = sum(one.holds(new) and not one.holds(old) for one in told)
    held, net = sum(one.holds(new) for one in told), f" ({lost} lost, {back} came back)" if lost and back else ""
    if lost == back:
        said = f"{STAGES[new]} cost no edit{net}: {held} hold with it as well."
    else:
        what = f"brought back {count(back - lost, 'edit')}" if back > lost else f"cost {count(lost - back, 'edit')}"
        said = f"{STAGES[new]} {what}{net}: {held} hold, {fewer((back - lost) / len(told))}."
    changed = _changed(flat, old, new)
    gained = {name: (was, now) for name, (was, now) in changed.items() if better(name, now, was)}
    worse = {name: (was, now) for name, (was, now) in changed.items() if better(name, was, now)}
    return f"{said} Better with it: {_list(gained)}. Worse with it: {_list(worse)}."


def _list(pairs: Mapping[str, tuple[float, ...]]) -> str:
    """Figures with what they were and what they are: "question answering from 57 to 78 of 100"; or that none is."""
    if not pairs:
        return "nothing that was measured here"
    said = []
    for name, (old, new) in sorted(pairs.items(), key=lambda one: -_size(*one)):
        values = f"{100 * old:.0f} to {100 * new:.0f} of 100" if kind_of(name).bounds else f"{old:.3g} to {new:.3g}"
        said.append(f"{spoken(name)} from {values}")
    return listed(said)


def spoken(name: str) -> str:
    """A figure's name in plain words."""
    return NAMES.get(name, name.replace("_", " "))


def _size(name: str, values: tuple[float, ...]) -> float:
    old, new = values
    return abs(new - old) / (1.0 if kind_of(name).bounds else abs(old) or 1.0)


def figures_table(columns: Mapping[str, Mapping[str, Any]], edits: int) -> Table:
    """The figures by free answers at each moment, of 100, with n and 95 % intervals.

    Args:
        columns: Figures by moment.
        edits: How many there are.
    """
    rows = [flat_figures(figures) for figures in columns.values()]
    table = _table("Of 100, with 95 % intervals")
    table.add_column("figure", overflow="fold", ratio=1)
    table.add_column("n", justify="right")
    for moment in columns:
        table.add_column(heading(moment, edits), justify="right")
    names = [name for name in (*NAMES, *rows[0]) if name in rows[0] and name not in _LEFT_OUT and "_chat" not in name]
    for name in dict.fromkeys(names):
        figures = [row.get(name) for row in rows]
        if any(figure_value(figure) is not None for figure in figures):
            table.add_row(plain(spoken(name)), _n(figures[0]), *map(_cell, figures))
    return table


def _n(figure: Any) -> str:
    return str(figure["n"]) if isinstance(figure, Mapping) else ""


def _cell(figure: Any) -> str:
    if isinstance(figure, Mapping):
        return hundreds(figure, "–")
    return "–" if figure is None else number(figure)


def _state(holds: bool) -> str:
    return "(holds)" if holds else "(does not hold)"


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", title_style="bold")


def layers_table(columns: Mapping[str, Column], edits: int) -> Table:
    """κ, norm and rank of each edited layer at each moment."""
    table = _table("Edited layers")
    table.add_column("layer", overflow="fold", ratio=1)
    for moment in columns:
        table.add_column(heading(moment, edits), justify="right")
    for layer in next(iter(columns.values()))[1]:
        figures = [layers[layer] for _, layers in columns.values()]
        sizes = [one["delta_spectral_norm"] / one["sigma_max_base"] for one in figures]
        table.add_row(plain(layer))
        table.add_row("  κ(W₀+ΔW)", *(f"{one['condition_number']:.1f}" for one in figures))
        table.add_row("  ‖ΔW‖₂ / σmax(W₀)", *(f"{size:.2f}" for size in sizes))
        table.add_row("  rank of ΔW", *(str(one["rank"]) for one in figures))
    return table


def say_lines(console: Console, sentence: str, mark: str) -> None:
    """A sentence behind a mark, wrapped to the console, with an empty line below where there is no mark."""
    indent = " " * len(mark)
    lines = textwrap.wrap(sentence, min(console.width, 100), initial_indent=mark, subsequent_indent=indent)
    console.print("\n".join(lines) + ("" if mark else "\n"), markup=False, highlight=False)
