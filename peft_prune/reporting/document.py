"""What a report is made of, whatever it is about; `render` turns it into one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Level = Literal["good", "near", "passed", "open"]
"""Within the limits, close to one, past one, or without any to judge by."""


@dataclass(frozen=True)
class Tile:
    """One number at the top.

    Args:
        label: What it is.
        value: The number as text.
        note: A line below it, such as its interval.
        level: Colours its edge.
        state: What that level is called; of a limit if left out.
    """

    label: str
    value: str
    note: str = ""
    level: Level | None = None
    state: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Args:
        text: What is shown.
        sort: What it is sorted by where that differs; a number or a text.
        level: Colours it.
        mark: Shown as a badge.
        parts: Shown one after the other in place of the text, each with its own direction of writing.
        note: A line below it.
    """

    text: str
    sort: float | str | None = None
    level: Level | None = None
    mark: bool = False
    parts: tuple[str, ...] = ()
    note: str = ""


Row: TypeAlias = "Sequence[Cell | str]"


@dataclass(frozen=True)
class Table:
    """A table; one that is searchable has a search field, filters and columns to sort by.

    Args:
        key: Short name, unique in the report.
        title: Its heading; empty for a table that belongs to a figure.
        columns: Headings.
        rows: Cells, or plain texts.
        numeric: Places of the columns that are aligned as numbers.
        note: A sentence below the title.
        searchable: See above.
        filters: Of a searchable table: the values of ``filter_column`` that get a button.
        filter_column: Place of the column that the buttons look at.
        empty: Shown in place of a table without rows.
        wide: Takes the whole width of the page.
    """

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    numeric: Sequence[int] = ()
    note: str = ""
    searchable: bool = False
    filters: Sequence[str] = ()
    filter_column: int | None = None
    empty: str = "Nothing to show."
    wide: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture with its numbers.

    Args:
        key: Short name, unique in the report.
        title: Its heading.
        svg: The picture, without an XML head.
        description: What it shows, in one sentence, for those who cannot see it.
        numbers: The same as a table.
        caption: A sentence below the picture.
    """

    key: str
    title: str
    svg: str
    description: str
    numbers: Table
    caption: str = ""


Block: TypeAlias = "Chart | Table"


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it, in order."""

    key: str
    title: str
    blocks: Sequence[Block]
    intro: str = ""


@dataclass(frozen=True)
class Answer:
    """One of the questions that the first screen answers.

    Args:
        question: What a reader wants to know.
        answer: In a few words.
        level: Colours it.
    """

    question: str
    answer: str
    level: Level | None = None


@dataclass(frozen=True)
class Term:
    """A word of the glossary."""

    word: str
    meaning: str


@dataclass(frozen=True)
class Report:
    """One report.

    Args:
        title: Its heading.
        subtitle: A line below it.
        level: The state of all in all.
        verdict: The same in a few words.
        summary: Plain sentences.
        advice: What to do next, one sentence each.
        tiles: Numbers at the top.
        sections: What follows.
        facts: Names and values of what the report is about: versions, people, files.
        terms: The glossary.
        redacted: Whether subjects and targets have been hashed.
        answers: What the first screen answers.
    """

    title: str
    subtitle: str
    level: Level
    verdict: str
    summary: Sequence[str]
    advice: Sequence[str]
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    terms: Sequence[Term] = field(default_factory=tuple)
    redacted: bool = False
    answers: Sequence[Answer] = ()
