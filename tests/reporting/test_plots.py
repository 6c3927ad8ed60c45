"""Pictures that stand alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from peft_prune.editors.locate import Location
from peft_prune.reporting.plots import plot_location, plot_trade_offs
from peft_prune.session import TradeOff, TradeOffs

pytest.importorskip("matplotlib")


def test_the_front_is_drawn(tmp_path: Path) -> None:
    points = [TradeOff({"m": f"log:{a}"}, a / 2, 1 - a / 4, 10 * a, on_front=a < 1.6) for a in (1.2, 1.5, 1.7)]
    plot_trade_offs(TradeOffs(tuple(points), points[0], points[1]), tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "front.png").stat().st_size > 10_000


def test_the_trace_is_drawn(tmp_path: Path) -> None:
    plot_location(Location((0.1, 0.2), (0.3, 0.1), 1, 0.9, 0.2, 5), tmp_path / "trace.png")
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
