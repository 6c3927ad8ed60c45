"""Progress of what takes long, off a terminal."""

from __future__ import annotations

import sys

import pytest

from peft_prune import moving


def test_off_a_terminal_a_bar_is_lines_and_a_short_one_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not sys.stderr.isatty()
    with moving.moving_bar(total=3, desc="Tracing", unit=" facts") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(moving, "SECONDS", 0.0)
    with moving.moving_bar(total=3, desc="Tracing", unit=" facts") as bar:
        for _ in range(3):
            bar.update()
            bar.refresh()
    lines = capsys.readouterr().err.split("\n")
    assert "Tracing: 1 of 3 facts" in "\n".join(lines) and "\r" not in "".join(lines)
    assert all(line.startswith("Tracing: ") for line in lines if line)
