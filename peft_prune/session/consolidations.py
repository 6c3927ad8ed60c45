"""The consolidation that a history keeps: what it gave, and all that it is done again by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..consolidation import ConsolidationSettings
from ..errors import HistoryError
from ..spectral import LowRankUpdate
from .records import EditRecord, Factors
from .schema import read_json

WRITTEN = "texts_written"
"""Beside the settings in the history: whether the base wrote the texts."""


@dataclass(frozen=True)
class ConsolidationRecord:
    """The last consolidation of a history.

    Args:
        batch: The last batch before it.
        restraint: Number of the last restraint in the history before it.
        edits: The strength of every edit that stood, by its number.
        settings: As they were given.
        texts: The retention texts.
        updates: The trained factors by module.
        phrasings: By number of the edit, the prompts that the model found for it.
        written: Whether the base wrote the texts.
    """

    batch: int
    restraint: int
    edits: Mapping[int, float]
    settings: ConsolidationSettings
    texts: Sequence[str]
    updates: Mapping[str, LowRankUpdate]
    phrasings: Mapping[int, Sequence[str]] = field(default_factory=dict)
    written: bool = False

    def stands(self, records: Iterable[EditRecord], restraint: int) -> bool:
        """Whether it is still that of the edits that stand: nothing was undone, rescaled or restrained since.

        Args:
            records: Edits that stand.
            restraint: Number of the last restraint in the history.
        """
        before = {record.id: record.strength for record in records if record.batch <= self.batch}
        return restraint <= self.restraint and before == dict(self.edits)


def read_consolidation(row: Mapping[str, Any], history: str | Path) -> ConsolidationRecord:
    """A row of the table of consolidations.

    Raises:
        HistoryError: It is damaged.
    """
    where = f"history: {history}: its consolidation"
    edits, settings, texts = (read_json(row[name], f"{where}: its {name}") for name in ("edits", "settings", "texts"))
    try:
        strengths = {int(edit): float(strength) for edit, strength in edits.items()}
        # what was done before there were these was done without them
        before = {"phrasings": 0, "neighbors": 0, "bfloat16": False, "neighbor_beta": settings.get("beta")}
        written = settings.pop(WRITTEN, False)
        known = ConsolidationSettings.of({**before, **settings})
        updates = Factors.from_bytes(row["data"]).updates
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise HistoryError(f"{where} is damaged: {error}") from None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise HistoryError(f"{where}: its texts are {texts!r:.60}, a list of texts is accepted")
    return ConsolidationRecord(
        row["batch"], row["restraint"], strengths, known, texts, updates, written=written is True
    )


def read_phrasings(rows: Iterable[Mapping[str, Any]], history: str | Path) -> dict[int, tuple[str, ...]]:
    """The rows of the table of phrasings, by number of the edit.

    Raises:
        HistoryError: One is damaged.
    """
    found = dict[int, tuple[str, ...]]()
    for row in rows:
        where = f"history: {history}: the phrasings of edit {row['edit']}"
        prompts = read_json(row["prompts"], where)
        if not isinstance(prompts, list) or not all(isinstance(own, str) and own.count("{}") == 1 for own in prompts):
            raise HistoryError(f"{where} are {prompts!r:.60}, a list of prompts with one {{}} each is accepted")
        found[row["edit"]] = tuple(prompts)
    return found
