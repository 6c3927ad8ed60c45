"""What the demonstrations tell: three edited sentences, what became of all of them, what was kept and what it cost."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
BARGAIN = "How much to give for how much is --alpha: a larger one restrains more."
_OF_EDITS = ("efficacy_greedy", "generalization_greedy", "portability_greedy")
_LEFT_OUT = ("efficacy", "generalization", "locality", "score", "fluency")

Column = tuple[dict[str, Any], dict[str, Any]]
"""Figures of a model, and those of its edited layers."""


@dataclass(frozen=True)
class Told:
    """One edit as the model answers it at the three moments.

    Args:
        request: The edit.
        took: Whether the model gave the new answer right after the edit.
        answers: Free answers before any edit, after all of them, and after all of them with the restraint.
    """

    request: EditRequest
    took: bool
    answers: tuple[str, str, str]

    @classmethod
    def all_of(cls, outcomes: Sequence[EditResult], answers: Iterable[tuple[str, str, str]]) -> list[Told]:
        """All edits of a session with what was answered to them."""
        pairs = zip(outcomes, answers, strict=True)
        return [cls(one.request, one.took, said) for one, said in pairs if one.request is not None]

    @property
    def holds(self) -> bool:
        """Whether the new answer is given after all edits."""
        return answers_with(self.answers[1], self.request.target_new)

    @property
    def holds_restrained(self) -> bool:
        """Whether it is given with the restraint as well."""
        return answers_with(self.answers[2], self.request.target_new)


def tell(console: Console, told: Sequence[Told], columns: Mapping[str, Column], closing: str) -> None:
    """Print the whole story.

    Args:
        console: Where.
        told: All edits.
        columns: Figures of the model and of its layers before any edit, after all of them, and with the restraint.
        closing: A last sentence.
    """
    figures, n = figures_of(columns), len(told)
    say_lines(console, OPENING.format(count(n, "fact")), "")
    console.print(sentences_table(three(told), n))
    console.print("What happened", style="bold", highlight=False)
    for sentence in (*what_happened(told, figures), BARGAIN, closing):
        say_lines(console, sentence, "* ")
    console.print()
    headings = ("before", count(n, "edit"), "with PRUNE")
    console.print(figures_table(figures, headings))
    console.print(layers_table(columns, headings))


def figures_of(columns: Mapping[str, Column]) -> dict[str, Any]:
    """Of columns, the figures of the model."""
    return {name: figures for name, (figures, _) in columns.items()}


def three(told: Sequence[Told]) -> list[Told]:
    """Three edits that show what can become of one: the first of each kind, then the first of the rest.

    The kinds: it holds with and without the restraint; the restraint took it; it came back with the restraint; later
    edits took it.
    """
    took = [one for one in told if one.took]
    found: list[Told] = []
    for kind in ((True, True), (True, False), (False, True), (False, False)):
        found += [one for one in took if (one.holds, one.holds_restrained) == kind][:1]
    for one in (*took, *told):
        if one not in found:
            found.append(one)
    return sorted(found[:SHOWN], key=told.index)


def sentences_table(shown: Sequence[Told], edits: int) -> Table:
    """The sentences that were edited, and how the model ends them at the three moments."""
    title = f"{['', 'One', 'Two', 'Three'][len(shown)]} of the {edits} edited sentences, and how the model ends them"
    table = _table(title)
    for heading in ("sentence and its new end", "before", f"after {edits} edits", "with the restraint"):
        table.add_column(heading, overflow="fold", ratio=3 if heading.startswith("sentence") else 2)
    for one in shown:
        asked = f"{one.request.text} … → {one.request.target_new}"
        said = [in_short(answer, one.request.target_new) or "–" for answer in one.answers]
        states = ["", _state(one.holds), _state(one.holds_restrained)]
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


def what_happened(told: Sequence[Told], columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What became of the edits and of the rest of the model, in sentences, with the figures of this run.

    Args:
        told: All edits.
        columns: Figures before any edit, after all of them, and with the restraint.
    """
    before, edited, restrained = (flat_figures(figures) for figures in columns.values())
    figures = _Moments(before, edited, restrained)
    said = [_of_edits(told), _of_wear(figures), _of_price(told, figures), _of_gain(figures)]
    return [sentence for sentence in said if sentence]


@dataclass(frozen=True)
class _Moments:
    """Flat figures at the three moments."""

    before: Mapping[str, Any]
    edited: Mapping[str, Any]
    restrained: Mapping[str, Any]

    def of(self, name: str) -> tuple[float, float, float] | None:
        values = [figure_value(one.get(name)) for one in (self.before, self.edited, self.restrained)]
        if any(value is None for value in values):
            return None
        first, second, third = (float(value) for value in values if value is not None)
        return first, second, third

    def of_the_rest(self) -> dict[str, tuple[float, float, float]]:
        """What is to stay as it was."""
        names = [name for name in self.edited if name not in (*_LEFT_OUT, *_OF_EDITS) and "_chat" not in name]
        return {name: values for name in names if (values := self.of(name)) is not None}


def better(name: str, value: float, other: float) -> bool:
    """Whether a figure is better than another of its kind by more than `LEAST`, of what is no share by that share."""
    gap = value - other if kind_of(name).higher_is_better else other - value
    return gap > LEAST * (1.0 if kind_of(name).bounds else abs(other))


def _of_edits(told: Sequence[Told]) -> str:
    n, took = len(told), [one for one in told if one.took]
    first = f"All {n} edits took" if len(took) == n else f"{len(took)} of {n} edits took"
    said = f"{first}: right after each edit, the model gave the new answer."
    held, lost = sum(one.holds for one in told), [one for one in took if not one.holds]
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
    return any(answers_with(one.answers[1], target) for target in targets)


def _of_wear(figures: _Moments) -> str:
    worn = {name: (own[0], own[1]) for name, own in figures.of_the_rest().items() if better(name, own[0], own[1])}
    if not worn:
        return "To the rest of the model the edits did no harm that was measured here."
    return f"To the rest of the model the edits did harm: {_list(worn)}."


def _of_price(told: Sequence[Told], figures: _Moments) -> str:
    held, held_restrained = sum(one.holds for one in told), sum(one.holds_restrained for one in told)
    gap = held - held_restrained
    if gap > 0:
        back = sum(one.holds_restrained and not one.holds for one in told)
        net = f" ({gap + back} lost, {back} came back)" if back else ""
        said = f"The restraint cost {count(gap, 'edit')}{net}: {held_restrained} hold, {fewer(-gap / len(told))}."
    elif gap < 0:
        said = f"The restraint cost no edit: {held_restrained} hold with it, {-gap} more than without."
    else:
        said = f"The restraint cost no edit: {held_restrained} hold with it as well."
    worse = {
        name: own[1:]
        for name in (*_OF_EDITS[1:], *figures.of_the_rest())
        if (own := figures.of(name)) is not None and better(name, own[1], own[2])
    }
    return said + (f" Worse with it as well: {_list(worse)}." if worse else "")


def _of_gain(figures: _Moments) -> str:
    gained = {name: own[1:] for name, own in figures.of_the_rest().items() if better(name, own[2], own[1])}
    if not gained:
        return "For that the restraint gave nothing back that was measured here."
    return f"For that the restraint gave back: {_list(gained)}."


def _list(pairs: Mapping[str, tuple[float, ...]]) -> str:
    """Figures with what they were and what they are: "question answering from 57 to 78 of 100"."""
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


def figures_table(columns: Mapping[str, Mapping[str, Any]], headings: Sequence[str]) -> Table:
    """The figures by free answers at the three moments, of 100, with n and 95 % intervals.

    Args:
        columns: Figures by moment.
        headings: What the moments are called.
    """
    rows = [flat_figures(figures) for figures in columns.values()]
    table = _table("Of 100, with 95 % intervals")
    table.add_column("figure", overflow="fold", ratio=1)
    table.add_column("n", justify="right")
    for heading in headings:
        table.add_column(heading, justify="right")
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


def layers_table(columns: Mapping[str, Column], headings: Sequence[str]) -> Table:
    """κ, norm and rank of each edited layer at the three moments."""
    table = _table("Edited layers")
    table.add_column("layer", overflow="fold", ratio=1)
    for heading in headings:
        table.add_column(heading, justify="right")
    for layer in next(iter(columns.values()))[1]:
        figures = [layers[layer] for _, layers in columns.values()]
        sizes = [one["delta_spectral_norm"] / one["sigma_max_base"] for one in figures]
        table.add_row(f"{layer}: κ(W₀+ΔW)", *(f"{one['condition_number']:.1f}" for one in figures))
        table.add_row("  ‖ΔW‖₂ / σmax(W₀)", *(f"{size:.2f}" for size in sizes))
        table.add_row("  rank of ΔW", *(str(one["rank"]) for one in figures))
    return table


def say_lines(console: Console, sentence: str, mark: str) -> None:
    """A sentence behind a mark, wrapped to the console, with an empty line below where there is no mark."""
    indent = " " * len(mark)
    lines = textwrap.wrap(sentence, min(console.width, 100), initial_indent=mark, subsequent_indent=indent)
    console.print("\n".join(lines) + ("" if mark else "\n"), markup=False, highlight=False)
