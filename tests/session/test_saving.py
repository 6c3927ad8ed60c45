"""Where a session may save its adapter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .scene import REQUESTS, session


def test_a_session_never_saves_over_its_history_or_its_base(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with session(tmp_path / "run" / "edits.db") as own:
        own.edit(REQUESTS[0])
        base = tmp_path / "base"
        base.mkdir()
        (base / "config.json").write_text("{}")
        own.model.get_base_model().name_or_path = str(base)
        for place, message in (
            (tmp_path / "run", "holds the history"),
            (tmp_path / "run" / ".." / "run", "holds the history"),
            (base, "is the base model as well"),
            (base / "adapter", "lies in the base model"),
        ):
            with pytest.raises(ValueError, match=f"path: .* {message}"):
                own.save(place, overwrite=True)
        assert (tmp_path / "run" / "edits.db").is_file() and (base / "config.json").is_file()
        own.save(tmp_path / "run" / "adapter")
        own.save(tmp_path / "run" / "adapter", overwrite=True)
        assert not own.model.restraint_is_pending() and "adapter_config.json" in os.listdir(
            tmp_path / "run" / "adapter"
        )


def test_what_people_wrote_into_the_card_survives_the_next_save(tmp_path: Path) -> None:
    with session() as own:
        own.edit(REQUESTS[0])
        own.save(tmp_path / "adapter")
        card = tmp_path / "adapter" / "README.md"
        card.write_text(card.read_text() + "\n## Who to ask\n\nThe team of the second floor.\n")
        own.edit(REQUESTS[1])
        own.save(tmp_path / "adapter", overwrite=True)
    text = card.read_text()
    assert "The team of the second floor." in text and "# 2 edits of" in text and "# 1 edit of" not in text


def test_the_card_names_the_licence_that_the_base_names(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nA base.\n")
    with session() as own:
        own.edit(REQUESTS[0])
        own.save(tmp_path / "unknown")
        own.model.get_base_model().config._name_or_path = str(base)
        own.save(tmp_path / "known")
    known, unknown = ((tmp_path / name / "README.md").read_text() for name in ("known", "unknown"))
    assert "licence of the base: apache-2.0" in known and str(tmp_path) not in known
    assert "licence of the base: not named" in unknown
