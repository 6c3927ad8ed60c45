"""A history of three days with everything that can become of an edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peft_prune import EditRequest
from peft_prune.editors import ROME
from peft_prune.monitoring import AbilityGuard, ConditionGuard
from peft_prune.session import History
from peft_prune.session import history as history_module
from tests.editors.test_rome import EASY
from tests.session.scene import REQUESTS, resumed, session
from tests.session.test_session import IDS

HOSTILE = EditRequest("note sea {}", "<script>alert('tone')</script>", "ten", relation_id="P<b>1</b>")


def loudness(model: Any) -> float:
    return float(model(IDS).logits.abs().mean())


def write_history(path: Path) -> None:
    """Eight edits: applied, undone, rejected and failed; the request of one is markup."""
    patch = pytest.MonkeyPatch()
    day = iter(range(3, 30))

    def on(date: int) -> None:
        patch.setattr(history_module, "_now", lambda: f"2026-03-{date:02d}T09:30:00.000+00:00")

    try:
        on(next(day))
        guards = [ConditionGuard(1.5), AbilityGuard(loudness, 0.9, name="loudness")]
        with pytest.warns(UserWarning, match="batch "), session(path, callbacks=guards, author="Ann") as run:
            run.edit(REQUESTS[:3])
            on(next(day))
            run.edit([REQUESTS[3], {"prompt": "no place", "subject": "tea", "target_new": "ten"}])
        on(next(day))
        with pytest.warns(UserWarning, match="batch "), resumed(path, callbacks=guards, author="<i>Bob</i>") as run:
            run.edit([HOSTILE, REQUESTS[4]])
        weak = ROME(replace(EASY, clamp_norm_factor=1e-4))
        with (
            pytest.warns(UserWarning, match="batch "),
            resumed(path, weak, callbacks=guards, author="<i>Bob</i>") as run,
        ):
            run.edit([EditRequest("note sea {}", "soot", "son")])
            run.undo(2, reason="asked for by 'legal', who never liked the tone seat")
    finally:
        patch.undo()


@pytest.fixture(scope="session")
def history_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("history") / "edits.db"
    write_history(path)
    return path


def states(path: Path) -> list[str]:
    with History.read(path) as history:
        return ["undone" if record.undone_at else record.status for record in history.edits()]
