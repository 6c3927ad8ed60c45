"""No bad input ends in a traceback, in silence or in a hang: each gives one line that says what is wrong with what."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from peft_prune.cli import main

from .bad_inputs import Case, Scene, all_cases, make_scene

SECONDS = 20
"""No command may work on a bad input for longer; the slowest takes a fraction of a second."""
LIBRARY = re.compile(r"Traceback|\b[A-Z]\w*(Error|Exception)\b|'NoneType'|<class|object at 0x|\bsize mismatch\b")
"""What a user cannot read: names of exceptions and types of libraries."""
SIDE_FILES = re.compile(r".*(\.lock|-wal|-shm)")


class Hang(BaseException):
    """The time of a case is over; no handler of the program takes it for one of its own errors."""


@dataclass(frozen=True)
class Outcome:
    code: int | None
    out: str
    err: str
    raised: str | None


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("scene"))


@contextmanager
def captured(folder: Path) -> Iterator[dict[str, str]]:
    """All that is written to standard output and error, by libraries as well, and every warning as a line of it."""
    kept = {name: os.dup(number) for name, number in (("out", 1), ("err", 2))}
    before, found = (sys.stdout, sys.stderr), {}
    files = {name: (folder / f".{name}").open("w+", encoding="utf-8", errors="replace") for name in kept}
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(files[name].fileno(), number)
    sys.stdout, sys.stderr = files["out"], files["err"]
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("default")
            yield found
    finally:
        sys.stdout, sys.stderr = before
        for name, number in (("out", 1), ("err", 2)):
            files[name].flush()
            os.dup2(kept[name], number)
            os.close(kept[name])
            files[name].seek(0)
            found[name] = files[name].read()
            files[name].close()
            (folder / f".{name}").unlink()
        found["err"] += "".join(f"warning: {one.message}\n" for one in warned if one.category is UserWarning)


def run(arguments: list[str], folder: Path) -> Outcome:
    def ring(number: int, frame: object) -> None:
        raise Hang

    code, raised = None, None
    # the output files may not lie in the case's folder, whose listing is compared
    with captured(folder.parent) as texts:
        old = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            code = main(arguments)
        except BaseException as error:
            raised = f"{type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
    return Outcome(code, texts["out"], texts["err"], raised)


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file in a folder, and its other entries, apart from what SQLite and locks keep beside a file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not SIDE_FILES.fullmatch(name):
            is_file = path.is_file() and not path.is_symlink()
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else ""
    return found


def faults(case: Case, folder: Path, scene: Scene) -> list[str]:
    """What is wrong with what a command makes of a case; nothing where all is well."""
    arguments = case.prepare(folder)
    before, inputs = contents(folder), contents(scene.folder)
    here = Path.cwd()
    os.chdir(folder)
    try:
        outcome = run(arguments, folder)
    finally:
        os.chdir(here)
    if outcome.raised is not None:
        return [outcome.raised[:200]]
    found = []
    if contents(scene.folder) != inputs:
        found.append("the inputs were changed")
    if case.accepted:
        return found + ([f"refused: {outcome.err}"] if outcome.code != 0 else [])
    if outcome.code != 2:
        found.append(f"exit code {outcome.code}: {(outcome.err or outcome.out)[-200:]}")
    lines = outcome.err.strip("\n").split("\n")
    if len(lines) != 1 or not lines[0].startswith("peft-prune: "):
        found.append(f"{len(lines)} lines: {outcome.err[:300]!r}")
    if LIBRARY.search(outcome.err):
        found.append(f"a library speaks: {outcome.err[:300]}")
    if not any(name in outcome.err for name in case.names):
        found.append(f"names none of {case.names}: {outcome.err[:200]}")
    after = contents(folder)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name) and name != case.log)
    return [*found, f"left or changed {changed}"] if changed else found


def test_there_are_enough_cases_of_every_kind(scene: Scene) -> None:
    cases = all_cases(scene)
    assert len(cases) >= 500 and len({case.id for case in cases}) > 0.95 * len(cases)
    assert [case.id for case in cases] == [case.id for case in all_cases(scene)]
    assert [case.id for case in cases] != [case.id for case in all_cases(scene, seed=1)]


def test_every_bad_input_gives_one_line_and_changes_nothing(scene: Scene, tmp_path: Path) -> None:
    wrong = {}
    cases = all_cases(scene, int(os.environ.get("PEFT_PRUNE_SEED", "0")))
    for number, case in enumerate(cases):
        folder = tmp_path / "cases" / str(number)
        folder.mkdir(parents=True)
        if found := faults(case, folder, scene):
            wrong[case.id] = found
        shutil.rmtree(folder)
    report = "\n".join(f"{name}\n    " + "\n    ".join(found) for name, found in wrong.items())
    assert not wrong, f"{len(wrong)} cases go wrong:\n{report}"
