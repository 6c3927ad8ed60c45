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
