"""What the demonstration tells follows what was answered and measured, in both directions."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from peft_prune import EditRequest
from peft_prune.cli.story import Told, figures_table, layers_table, sentences_table, tell, three, what_happened

MOMENTS = ("before", "edited", "edited with PRUNE")


def edit(number: int, edited: str, restrained: str, took: bool = True) -> Told:
    request = EditRequest("The town of {} lies in", f"Place{number}", f"Land{number}")
    return Told(request, took, (" Oldland. And", f" {edited}. And so", f" {restrained}. And so"))


def share(value: float, n: int = 50) -> dict[str, Any]:
    return {"value": value, "n": n, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}


def figures(**values: tuple[float, float, float]) -> dict[str, dict[str, Any]]:
    """Figures at the three moments; perplexity is a number, all others shares."""
    return {
        moment: {name: own[place] if name == "perplexity" else share(own[place]) for name, own in values.items()}
        for place, moment in enumerate(MOMENTS)
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


def test_that_all_took_and_fewer_hold_is_explained_by_the_later_edits() -> None:
    (said, *_) = what_happened(TOLD, TRADE)
    assert "All 10 edits took: right after each edit, the model gave the new answer." in said
    assert "After all 10 edits, 7 still hold: edits made later changed what the model says to the other 3." in said
    assert "To 2 of these it now gives the new answer of another edit." in said  # edits 6 and 10
    assert "None of this is the restraint's doing" in said


def test_cost_and_gain_of_the_restraint_are_both_told() -> None:
    _, wear, price, gain = what_happened(TOLD, TRADE)
    assert "answers on other subjects that stayed from 100 to 55 of 100" in wear and "from 2.1 to 2.7" in wear
    assert price.startswith("The restraint cost 1 edit (2 lost, 1 came back): 6 hold, about 10 of 100 fewer.")
    assert "Worse with it as well: the same in other words from 80 to 64 of 100." in price
    assert gain == (
        "For that the restraint gave back: answers on other subjects that stayed from 55 to 76 of 100 and perplexity "
        "of plain text (lower is better) from 2.7 to 2.26."
    )


def test_a_restraint_that_buys_nothing_is_said_to_buy_nothing() -> None:
    worse = figures(efficacy_greedy=(0.0, 0.7, 0.6), locality_greedy=(1.0, 0.9, 0.8), perplexity=(2.1, 2.1, 2.2))
    _, wear, price, gain = what_happened(TOLD, worse)
    assert "perplexity" not in wear and "from 100 to 90 of 100" in wear
    assert "answers on other subjects that stayed from 90 to 80 of 100" in price and "from 2.1 to 2.2" in price
    assert gain == "For that the restraint gave nothing back that was measured here."


def test_a_restraint_that_costs_no_edit_is_said_to_cost_none() -> None:
    unharmed = figures(locality_greedy=(1.0, 1.0, 1.0))
    held, wear, price, _ = what_happened(HELD, unharmed)
    assert held.endswith("After all 5 edits, each of them still holds.") and "Nowhere" not in held
    assert wear == "To the rest of the model the edits did no harm that was measured here."
    assert price == "The restraint cost no edit: 5 hold with it as well."
    assert "1 more than without" in what_happened([*HELD, *BACK], unharmed)[2]


def test_edits_that_did_not_take_are_no_loss_of_later_ones() -> None:
    (said, *_) = what_happened([*HELD, edit(6, "Oldland", "Oldland", took=False)], TRADE)
    assert "5 of 6 edits took" in said and "After all 6 edits, each that took still holds." in said


def test_the_three_sentences_show_what_can_become_of_an_edit() -> None:
    assert three(TOLD) == [HELD[0], TAKEN[0], BACK[0]]
    assert three(HELD) == HELD[:3] and three(HELD[:2]) == HELD[:2]
    assert three([PUSHED_OUT[0], *HELD]) == [PUSHED_OUT[0], HELD[0], HELD[1]]


def printed(*things: Any) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    for thing in things:
        console.print(thing)
    return console.export_text()


def test_the_table_shows_answers_at_the_three_moments_and_whether_they_hold() -> None:
    said = " ".join(printed(sentences_table([TAKEN[0]], 10)).split())
    assert "One of the 10 edited sentences" in said
    assert "Oldland. Land8. Oldland." in said and "(holds) (does not hold)" in said and "And" not in said


@pytest.mark.parametrize("edits", [3, 60, 1000])
def test_all_that_is_told_fits_eighty_columns(edits: int) -> None:
    layer = {"condition_number": 123.4, "delta_spectral_norm": 2.0, "sigma_max_base": 1.0, "rank": 60}
    columns = {moment: (own, {"model.layers.0.mlp.down_proj": layer}) for moment, own in TRADE.items()}
    console = Console(width=80, record=True, file=io.StringIO())
    tell(console, TOLD * (edits // 3), columns, "A closing sentence.")
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any(line.rstrip().endswith("…") for line in lines)
    headings = ("before", f"{edits} edits", "with PRUNE")
    rows = printed(figures_table(TRADE, headings), layers_table(columns, headings)).splitlines()
    (kept,) = [row.split() for row in rows if "other subjects" in row]
    assert kept[-6:] == ["100", "(90–100)", "55", "(45–65)", "76", "(66–86)"]
