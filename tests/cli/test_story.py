"""What the demonstration tells follows what was answered and measured, in both directions."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from peft_prune import EditRequest
from peft_prune.cli.story import Told, figures_table, layers_table, sentences_table, tell, three, what_happened

MOMENTS = ("before", "edited", "edited with PRUNE", "consolidated")


def edit(number: int, *answers: str, took: bool = True) -> Told:
    """An edit with what is answered after all edits, with the restraint and, where given, consolidated."""
    request = EditRequest("The town of {} lies in", f"Place{number}", f"Land{number}")
    said = (" Oldland. And", *(f" {answer}. And so" for answer in answers))
    return Told(request, took, dict(zip(MOMENTS, said, strict=False)))


def share(value: float, n: int = 50) -> dict[str, Any]:
    return {"value": value, "n": n, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}


def figures(**values: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    """Figures at as many moments as are given; perplexity is a number, all others shares."""
    return {
        moment: {name: own[place] if name == "perplexity" else share(own[place]) for name, own in values.items()}
        for place, moment in enumerate(MOMENTS[: min(map(len, values.values()))])
    }


HELD = [edit(number, f"Land{number}", f"Land{number}") for number in range(1, 6)]
PUSHED_OUT = [edit(6, "Land2", "Land2"), edit(7, "Nowhere", "Nowhere")]
TAKEN = [edit(8, "Land8", "Oldland"), edit(9, "Land9", "Land3")]
BACK = [edit(10, "Land1", "Land10")]
TOLD = [*HELD, *PUSHED_OUT, *TAKEN, *BACK]
TRADE = figures(
    efficacy_greedy=(0.0, 0.7, 0.6),
    generalization_greedy=(0.0, 0.8, 0.64),
    locality_greedy=(1.0, 0.55, 0.76),
    perplexity=(2.1, 2.7, 2.26),
)
TOGETHER = [
    edit(1, "Land1", "Land1", "Land1"),
    edit(2, "Land2", "Oldland", "Land2"),
    edit(3, "Nowhere", "Nowhere", "Land3"),
    edit(4, "Land4", "Land4", "Oldland"),
]
CONSOLIDATED = figures(
    efficacy_greedy=(0.0, 0.75, 0.5, 0.75),
    generalization_greedy=(0.0, 0.8, 0.64, 0.9),
    locality_greedy=(1.0, 0.55, 0.76, 0.7),
    perplexity=(2.1, 2.7, 2.26, 2.265),
)


def test_that_all_took_and_fewer_hold_is_explained_by_the_later_edits() -> None:
    (said, *_) = what_happened(TOLD, TRADE)
    assert "All 10 edits took: right after each edit, the model gave the new answer." in said
    assert "After all 10 edits, 7 still hold: edits made later changed what the model says to the other 3." in said
    assert "To 2 of these it now gives the new answer of another edit." in said  # edits 6 and 10
    assert "None of this is the restraint's doing" in said


def test_cost_and_gain_of_the_restraint_are_both_told() -> None:
    _, wear, restraint = what_happened(TOLD, TRADE)
    assert "answers on other subjects that stayed from 100 to 55 of 100" in wear and "from 2.1 to 2.7" in wear
    assert restraint == (
        "The restraint cost 1 edit (2 lost, 1 came back): 6 hold, about 10 of 100 fewer. Better with it: answers on "
        "other subjects that stayed from 55 to 76 of 100 and perplexity of plain text (lower is better) from 2.7 to "
        "2.26. Worse with it: the same in other words from 80 to 64 of 100."
    )


def test_a_restraint_that_buys_nothing_is_said_to_buy_nothing() -> None:
    worse = figures(efficacy_greedy=(0.0, 0.7, 0.6), locality_greedy=(1.0, 0.9, 0.8), perplexity=(2.1, 2.1, 2.2))
    _, wear, restraint = what_happened(TOLD, worse)
    assert "perplexity" not in wear and "from 100 to 90 of 100" in wear
    assert "Better with it: nothing that was measured here. Worse with it: answers on other subjects" in restraint
    assert "from 90 to 80 of 100" in restraint and "from 2.1 to 2.2" in restraint


def test_a_restraint_that_costs_no_edit_is_said_to_cost_none() -> None:
    unharmed = figures(locality_greedy=(1.0, 1.0, 1.0))
    held, wear, restraint = what_happened(HELD, unharmed)
    assert held.endswith("After all 5 edits, each of them still holds.") and "Nowhere" not in held
    assert wear == "To the rest of the model the edits did no harm that was measured here."
    assert restraint.startswith("The restraint cost no edit: 5 hold with it as well.")
    assert restraint.endswith("Worse with it: nothing that was measured here.")
    assert "brought back 1 edit: 6 hold" in what_happened([*HELD, *BACK], unharmed)[2]
    assert "cost no edit (1 lost, 1 came back): 6 hold" in what_happened([*HELD, TAKEN[0], *BACK], unharmed)[2]


def test_what_consolidation_gave_and_cost_is_told_against_the_restrained_model() -> None:
    *_, restraint, consolidation = what_happened(TOGETHER, CONSOLIDATED)
    assert restraint.startswith("The restraint cost 1 edit: 2 hold, about 25 of 100 fewer.")
    assert consolidation == (
        "Consolidation brought back 1 edit (1 lost, 2 came back): 3 hold, about 25 of 100 more. Better with it: the "
        "same in other words from 64 to 90 of 100. Worse with it: answers on other subjects that stayed from 76 to 70 "
        "of 100."
    )


def test_a_consolidation_that_was_left_out_is_told_with_its_reason() -> None:
    *_, restraint, last = what_happened(TOLD, TRADE, "3 of 10 edits hold, 6 held before")
    assert restraint.startswith("The restraint")
    assert last == "Consolidation was tried and left out: 3 of 10 edits hold, 6 held before."


def test_edits_that_did_not_take_are_no_loss_of_later_ones() -> None:
    (said, *_) = what_happened([*HELD, edit(6, "Oldland", "Oldland", took=False)], TRADE)
    assert "5 of 6 edits took" in said and "After all 6 edits, each that took still holds." in said


def test_the_three_sentences_show_what_can_become_of_an_edit() -> None:
    assert three(TOLD) == [HELD[0], TAKEN[0], BACK[0]]
    assert three(HELD) == HELD[:3] and three(HELD[:2]) == HELD[:2]
    assert three([PUSHED_OUT[0], *HELD]) == [PUSHED_OUT[0], HELD[0], HELD[1]]
    assert three(TOGETHER) == [TOGETHER[0], TOGETHER[1], TOGETHER[3]]


def printed(*things: Any) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    for thing in things:
        console.print(thing)
    return console.export_text()


def test_the_table_shows_answers_at_every_moment_and_whether_they_hold() -> None:
    said = " ".join(printed(sentences_table([TAKEN[0]], 10)).split())
    assert "One of the 10 edited sentences" in said and "consolidated" not in said
    assert "Oldland. Land8. Oldland." in said and "(holds) (does not" in said and "And" not in said
    said = " ".join(printed(sentences_table([TOGETHER[1]], 10)).split())
    assert "before 10 edits with PRUNE consolidated" in said and "Oldland. Land2. Oldland. Land2." in said


@pytest.mark.parametrize("edits", [4, 60, 1000])
def test_all_that_is_told_fits_eighty_columns(edits: int) -> None:
    layer = {"condition_number": 123.4, "delta_spectral_norm": 2.0, "sigma_max_base": 1.0, "rank": 60}
    columns = {moment: (own, {"model.layers.10.mlp.down_proj": layer}) for moment, own in CONSOLIDATED.items()}
    console = Console(width=80, record=True, file=io.StringIO())
    tell(console, TOGETHER * (edits // 4), columns, "A closing sentence.", "")
    said = console.export_text()
    assert "Last, consolidation trained that sum" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 80
    assert not any(line.rstrip().endswith("…") for line in said.splitlines())
    rows = printed(figures_table(CONSOLIDATED, edits), layers_table(columns, edits)).splitlines()
    (kept,) = [row.split() for row in rows if "(45–65)" in row]
    assert kept[-8:] == ["100", "(90–100)", "55", "(45–65)", "76", "(66–86)", "70", "(60–80)"]
    assert " ".join(rows).split().count("123.4") == 4
