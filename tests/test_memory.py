"""Peak memory of editing and merging in a process of its own, and the benchmarks that measure on other machines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes.launching import environment

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
ROOM = 300e6


def printed(script: str, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells a peak since a moment")
def test_an_edit_takes_one_and_a_half_float64_squares_and_a_merge_one_layer() -> None:
    found = printed("memory.py", "--hidden", "256", "--inner", "5120", "--layers", "4")
    assert found["square"] == 5120**2 * 8
    # one float64 copy more, of 210 MB, would not fit
    assert found["editing"] <= 1.5 * found["square"] + ROOM
    assert found["merging"] <= 256 * 5120 * 4 + ROOM


def test_the_benchmark_for_a_gpu_runs_small_without_one() -> None:
    found = printed("gpu.py", "--small", "--json")
    parts = {"second moments", "restraint, rank 100", "condition number", "rome, per edit", "memit, per edit"}
    assert parts <= set(found)
    assert found["condition number"]["relative_error"] < 1e-3
    assert "stopped" not in found
