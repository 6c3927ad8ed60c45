"""Run something in two processes, as a launcher does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240


def environment(**further: str) -> dict[str, str]:
    """For a process that computes with one thread and finds this package and its tests."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **own, **further}


def launched(*arguments: str | Path, **further: str) -> subprocess.CompletedProcess[str]:
    """Two processes by torchrun; both write to one output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=environment(**further),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def side_by_side(arguments: Sequence[str], output: str = "stdout", **further: str) -> list[tuple[int, list[str]]]:
    """Two processes that nobody watches over: the exit code of each, and its lines on stdout or stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                **further,
            ),
            cwd=ROOT,
            stdout=subprocess.PIPE if output == "stdout" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if output == "stderr" else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=SECONDS)[output == "stderr"] for process in processes]
    return [(process.returncode, output.splitlines()) for process, output in zip(processes, outputs, strict=True)]
