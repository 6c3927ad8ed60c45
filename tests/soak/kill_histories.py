"""Kill processes that write a history at random instants, and look whether anything is lost.

Not part of the tests: ``python -m tests.soak.kill_histories --kills 400``. Each kill is SIGKILL of a forked process
that creates histories, edits, undoes, or resumes and saves. Afterwards the history must open, hold every batch and
every undo that had been reported as done, and give its adapter; a name whose creation was cut short must be free.
Prints one line for each kind of work, and exits with 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from peft_prune.session import History, adapter_of
from tests.session.scripted import MODULE, drawn, request, resumed, session
from tests.tiny import tiny_gpt2

EDITS = 12
LONGEST = {"create": 0.3, "edit": 0.6, "undo": 0.5, "save": 0.5}
"""Seconds within which the kill of each kind of work falls."""

Say = Callable[[], None]


def create(folder: Path, say: Say) -> None:
    """Histories one after another, under names of their own."""
    with session() as run:
        facts = run.history.meta
    number = len(list(folder.glob("new-*.db")))
    say()
    while True:
        History.create(folder / f"new-{number}.db", facts).close()
        number += 1
        say()


def edit(folder: Path, say: Say) -> None:
    """Go on with a history, a batch of two at a time, until there are enough edits; then with another one."""
    path = folder / "edits.db"
    with resumed(path) if path.exists() else session(path) as run:
        say()
        for number in range(run.history.last_edit, EDITS, 2):
            run.edit([request(number), request(number + 1)], batch_size=2)
            say()
    time.sleep(60)


def undo(folder: Path, say: Say) -> None:
    """Undo one edit after another."""
    with resumed(folder / "edits.db") as run:
        say()
        for record in run.history.edits(standing=True):
            run.undo(record.id)
            say()
    time.sleep(60)


def save(folder: Path, say: Say) -> None:
    """Resume and save the adapter, again and again."""
    while True:
        with resumed(folder / "edits.db") as run:
            run.save(folder / "adapter", overwrite=True)
        say()


def killed(work: Callable[[Path, Say], None], folder: Path, seconds: float) -> int:
    """Let a forked process do the work, kill it after so long, and count what it said was done."""
    inside, outside = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(inside)
        try:
            os.write(outside, b".")
            work(folder, lambda: os.write(outside, b".") and None)
        finally:
            os._exit(1)
    os.close(outside)
    assert os.read(inside, 1) == b"."
    if work is create:
        assert os.read(inside, 1) == b"."  # the model is made; what is left is files alone
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    said = int(work is create)
    while more := os.read(inside, 4096):
        said += len(more)
    os.close(inside)
    if not os.WIFSIGNALED(status):
        raise RuntimeError(f"the work ended by itself with {status}")
    return said


def check(path: Path) -> History:
    """The history, once it has been seen to be whole and to give its adapter."""
    log = History.read(path)
    assert log._execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    model = adapter_of(log, tiny_gpt2())
    layer = dict(model.edited_layers())[MODULE]
    parts = [drawn(r.request.subject).dense() for r in log.edits(standing=True) if r.request is not None]
    expected = sum(parts, torch.zeros(16, 64))
    assert torch.allclose(layer.raw_update("default").dense(), expected, atol=1e-5)
    return log


def after_create(folder: Path, said: int) -> int:
    made = sorted(folder.glob("new-*.db"), key=lambda path: int(path.stem[4:]))
    assert said <= len(made) <= said + 1, f"{said} were made, {len(made)} are there"
    for path in made[-2:]:
        check(path).close()
        resumed(path).close()
    session(folder / f"new-{len(made)}.db").close()
    return len(made) + 1


def after_edit(folder: Path, before: int, said: int) -> int:
    path = folder / "edits.db"
    if not path.exists():
        assert said == 0, "a session had begun"
        return 0
    with check(path) as log:
        done = len(log.edits())
    batches = max(said - 1, 0)
    assert before + 2 * batches <= done <= before + 2 * batches + 2, (before, said, done)
    if done == EDITS:
        path.unlink()
        for ending in ("-wal", "-shm"):
            Path(f"{path}{ending}").unlink(missing_ok=True)
        return 0
    return done


def after_undo(folder: Path, before: int, said: int) -> int:
    with check(folder / "edits.db") as log:
        standing = log.standing
    undone = max(said - 1, 0)
    assert before - undone - 1 <= standing <= before - undone, (before, said, standing)
    return standing


def soak(kind: str, kills: int, rng: random.Random, folder: Path) -> Counter[str]:
    """So many kills of one kind of work; what they fell upon."""
    found: Counter[str] = Counter()
    before = 0
    for _ in range(kills):
        if kind in ("undo", "save") and not before:
            shutil.rmtree(folder)
            folder.mkdir()
            with session(folder / "edits.db") as run:
                run.edit([request(number) for number in range(EDITS)], batch_size=4)
            before = EDITS
        said = killed(WORK[kind], folder, rng.uniform(0, LONGEST[kind]))
        found["said done"] += said
        if kind == "create":
            before = after_create(folder, before + max(said - 1, 0))
        elif kind == "edit":
            before = after_edit(folder, before, said)
        elif kind == "undo":
            before = after_undo(folder, before, said)
        else:
            with check(folder / "edits.db") as log:
                assert log.standing == EDITS
        found["kills"] += 1
    return found


WORK = {"create": create, "edit": edit, "undo": undo, "save": save}


def main() -> int:
    """Run all kinds of work in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=400, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(WORK), action="append", help="kinds of work; may be repeated")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rng, failed = random.Random(arguments.seed), False
    kinds = arguments.only or list(WORK)
    for kind in kinds:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = soak(kind, arguments.kills // len(kinds), rng, Path(folder))
            except (AssertionError, RuntimeError) as error:
                failed = True
                print(f"{kind}: LOST: {error}", flush=True)
                continue
        took = time.perf_counter() - start
        print(
            f"{kind}: {found['kills']} kills, {found['said done']} pieces of work done, none lost, {took:.0f} s",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
