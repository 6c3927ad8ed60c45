"""Two processes with one thread each against one process with one thread, in turns on the same machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from measure import Row, in_seconds

WORKER = Path(__file__).resolve().parent / "processes.py"
ROUNDS = 1


def rows() -> Iterator[Row]:
    """One row each for second moments, the search for values, and evaluation."""
    if (os.cpu_count() or 1) < 2:
        print("one CPU alone is at hand: two processes cannot be compared with one")
        return
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(WORKER)]
    one: list[dict[str, list[float]]] = []
    two: list[dict[str, list[float]]] = []
    for _ in range(ROUNDS):
        one.append(_run([sys.executable, str(WORKER)]))
        two.append(_run(several))
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs" if hasattr(os, "getloadavg") else ""
    for name in one[0]:
        for place, kind in enumerate(("", ", processor seconds of the busier")):
            alone, shared = (min(found[name][place] for found in side) for side in (one, two))
            what, reference = f"{name}, 2 processes of 1 thread{kind}", "1 process of 1 thread"
            yield Row(what, reference, alone / shared, 1.7, False, in_seconds(shared), in_seconds(alone), load)


def _run(command: list[str]) -> dict[str, list[float]]:
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout
    result: dict[str, list[float]] = json.loads(found.strip().splitlines()[-1])
    return result
