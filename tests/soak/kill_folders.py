"""Kill processes while they replace a folder, and look at what is left: ``python tests/soak/kill_folders.py``.

A child replaces one folder again and again and is killed by SIGKILL at a random instant, every second time within a
millisecond of the moment at which the new version takes its place. After every kill the folder must hold one whole
version, under its name or, where the system cannot exchange two names, put back by whoever comes next; and after the
next run no temporary folder is left. Half of the kills go the road with the exchange, half the other.

It is not collected by pytest. Exit code 1 where anything was lost or left over.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from peft_prune import folders
from peft_prune.folders import MARK, recover, whole_folder

FILES = {"adapter_config.json": 2_000, "README.md": 1_500, "adapter_model.safetensors": 1_000_000, "runs/log.txt": 500}
"""What the folder holds, by size, as an adapter's folder does."""


def content(version: int, name: str) -> bytes:
    """The bytes of a file in a version; no two versions share any file."""
    block = f"{version:012d} {name}\n".encode()
    return (block * (FILES[name] // len(block) + 1))[: FILES[name]]


def write(target: Path, version: int) -> None:
    """Replace the folder by this version."""
    with whole_folder(target, overwrite=True) as folder:
        for name in FILES:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content(version, name))


def is_whole(target: Path) -> bool:
    """Whether a folder holds all files of one version, and nothing else."""
    if not target.is_dir():
        return False
    held = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    version = held.get("README.md", b"")[:12]
    return version.isdigit() and held == {name: content(int(version), name) for name in FILES}


def strays(folder: Path) -> list[str]:
    """Temporary folders that lie there."""
    return [name for name in os.listdir(folder) if name.startswith(MARK)]


def killed_child(target: Path, exchange: bool, aimed: bool, after: float) -> None:
    """A child that writes one version after the other, killed so many seconds from its start, or from a replacement."""
    listening, telling = os.pipe()
    child = os.fork()
    if child == 0:
        replace = folders._exchange

        def announced(*places: Path) -> None:
            os.write(telling, b".")
            replace(*places)

        try:
            folders._exchange = announced
            if not exchange:
                folders._swapped = lambda one, other: False
            for version in range(10**9):
                write(target, version)
        finally:
            os._exit(1)
    if aimed:
        os.read(listening, 1)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(listening)
    os.close(telling)
    if not os.WIFSIGNALED(status):
        raise RuntimeError("the child ended before it was killed")


def soak(kills: int, seed: int, root: Path) -> Counter[str]:
    """Figures of so many kills."""
    draw, found, target = random.Random(seed), Counter[str](), root / "adapter"
    start = time.perf_counter()
    for version in range(5):
        write(target, version)
    seconds = (time.perf_counter() - start) / 5
    for number in range(kills):
        road, aimed = ("exchange", "two renames")[number % 2], number % 4 < 2
        killed_child(target, road == "exchange", aimed, draw.uniform(0.0, 0.0006 if aimed else 4 * seconds))
        found[f"{road}: kills"] += 1
        found[f"{road}: temporary folders left by the killed"] += len(strays(root))
        under_its_name = is_whole(target)
        recover(target)
        if not is_whole(target):
            found["lost"] += 1
            write(target, 0)
        else:
            found[f"{road}: whole under its name" if under_its_name else f"{road}: put back"] += 1
        found["temporary folders after the next run"] += len(strays(root))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill processes while they replace a folder.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as root:
        found = soak(given.kills, given.seed, Path(root))
    print(json.dumps({"lost": 0, **dict(sorted(found.items()))}, indent=2))
    return 1 if found["lost"] or found["temporary folders after the next run"] else 0


if __name__ == "__main__":
    sys.exit(main())
