"""Peak memory of editing and merging a random Llama of about 1 GB with d_ff 8192, beside the model's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from measure import Row

WORKER = Path(__file__).resolve().parent / "memory.py"
ROOM = 300e6
SHAPE = ("--hidden", "1024", "--inner", "8192", "--layers", "8")
CASES = {
    "ROME, one layer": ("--editor", "rome"),
    "MEMIT, one layer": ("--editor", "memit", "--edited", "1"),
    "MEMIT, three layers, inverses in mapped files": ("--editor", "memit", "--edited", "3", "--mapped"),
}


def rows() -> Iterator[Row]:
    """One row for each way of editing, and one for merging."""
    for name, options in CASES.items():
        command = [sys.executable, str(WORKER), *SHAPE, *options]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        allowed = 1.5 * found["square"] + ROOM
        yield _row(f"editing, {name}", "1.5 float64 d_ff² + 300 MB", found["editing"], allowed)
        if name == "ROME, one layer":
            layer = 1024 * 8192 * 4
            yield _row("merging", "one layer + 300 MB", found["merging"], layer + ROOM)


def _row(what: str, reference: str, spent: float, allowed: float) -> Row:
    note = "resident bytes beyond the model's"
    return Row(what, reference, spent / allowed, 1.0, True, f"{spent / 1e6:.0f} MB", f"{allowed / 1e6:.0f} MB", note)
