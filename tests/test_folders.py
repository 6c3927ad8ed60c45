"""Folders and files are written whole or not at all, and what a dead process left is cleared away."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest

from peft_prune import folders
from peft_prune.folders import MARK, recover, whole_file, whole_folder


def write(path: Path, version: str, *, overwrite: bool = True) -> None:
    with whole_folder(path, overwrite=overwrite) as folder:
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text(version)


def version(path: Path) -> str:
    """The version of a folder; an assertion fails where its files are not all there and of one version."""
    assert sorted(os.listdir(path)) == ["a.txt", "b.txt"]
    (found,) = {(path / name).read_text() for name in ("a.txt", "b.txt")}
    return found


def strays(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(MARK)]


@pytest.fixture(params=["exchange", "renames"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which a folder takes the place of another."""
    if request.param == "renames":
        monkeypatch.setattr(folders, "_swapped", lambda one, other: False)
    return request.param


def test_a_folder_replaces_another_whole(road: str, tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    write(tmp_path / "out", "second")
    assert version(tmp_path / "out") == "second" and os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_linux_exchanges_two_folders_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "first")
    swaps = []
    original = folders._swapped
    monkeypatch.setattr(folders, "_swapped", lambda one, other: swaps.append(original(one, other)) or swaps[-1])
    write(tmp_path / "out", "second")
    assert swaps == [True]


def test_an_error_in_the_block_leaves_the_old_version_and_nothing_else(road: str, tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    with pytest.raises(RuntimeError, match="the disk"), whole_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "a.txt").write_text("second")
        raise RuntimeError("the disk")
    assert version(tmp_path / "out") == "first" and os.listdir(tmp_path) == ["out"]


def test_a_replacement_that_fails_loses_nothing(road: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "first")
    original = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "out" and Path(source).parent.name == "new":
            raise OSError(errno.EIO, "input/output error")
        original(source, target)

    monkeypatch.setattr(os, "replace", failing)
    if road == "exchange":
        monkeypatch.setattr(folders, "_swapped", lambda one, other: failing(one, other))
    with pytest.raises(OSError, match="input/output error"):
        write(tmp_path / "out", "second")
    assert version(tmp_path / "out") == "first" and os.listdir(tmp_path) == ["out"]


def test_a_first_version_that_cannot_take_its_place_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    original = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target).name == "out":
            raise OSError(errno.EIO, "input/output error")
        original(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="input/output error"):
        write(tmp_path / "deep" / "er" / "out", "first")
    with pytest.raises(OSError, match="input/output error"), whole_file(tmp_path / "out") as part:
        part.write_text("text")
    assert os.listdir(tmp_path) == []


def test_what_has_come_to_stand_there_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OSError), whole_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("mine")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a.txt").write_text("another's")
    assert (tmp_path / "out" / "a.txt").read_text() == "another's" and os.listdir(tmp_path) == ["out"]


def die(target: Path, where: str) -> int:
    """Write a second version in a child that is killed at this place; returns the child's signal."""
    child = os.fork()
    if child:
        return os.WTERMSIG(os.waitpid(child, 0)[1])
    original = os.replace

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def replace(source: Path, goal: Path) -> None:
        if where == "between" and Path(source).parent.name == "new":
            kill()
        original(source, goal)
        if where == "clearing" and str(goal).endswith("-gone"):
            kill()

    try:
        os.replace, folders._swapped = replace, lambda one, other: False
        with whole_folder(target, overwrite=True) as folder:
            for name in ("a.txt", "b.txt"):
                (folder / name).write_text("second")
                if where == "writing":
                    kill()
    finally:
        os._exit(1)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize(("where", "left"), [("writing", "first"), ("between", "first"), ("clearing", "second")])
def test_whoever_comes_next_clears_up_after_a_killed_process(tmp_path: Path, where: str, left: str) -> None:
    target = tmp_path / "out"
    write(target, "first")
    assert die(target, where) == signal.SIGKILL and len(strays(tmp_path)) == 1
    assert target.exists() == (where != "between")
    recover(target)
    assert version(target) == left and os.listdir(tmp_path) == ["out"]


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "one") as folder:
        (folder / "a.txt").write_text("mine")
        write(tmp_path / "two", "other")
        recover(tmp_path / "two")
        assert (folder / "a.txt").read_text() == "mine"
        (folder / "b.txt").write_text("mine")
    assert version(tmp_path / "one") == "mine" and version(tmp_path / "two") == "other"


def test_what_is_not_ours_is_never_cleared_away(tmp_path: Path) -> None:
    names = (".peft-prune-notes", ".peft-prune-ABCDEFGH", "peft-prune-abcdefgh", ".out-abcdefgh")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").write_text("mine")
    (tmp_path / f"{MARK}abcdefgh").symlink_to(tmp_path / "kept")
    write(tmp_path / "out", "first")
    assert all((tmp_path / name / "mine.txt").exists() for name in (*names, "kept", f"{MARK}abcdefgh"))


def test_a_file_takes_its_place_whole_and_no_link_is_followed(tmp_path: Path) -> None:
    target, victim = tmp_path / "report.html", tmp_path / "victim"
    victim.write_text("mine")
    with whole_file(target) as part:
        assert part.name == "report.html" and not target.exists()
        part.write_text("first")
    with pytest.raises(RuntimeError), whole_file(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert target.read_text() == "first" and sorted(os.listdir(tmp_path)) == ["report.html", "victim"]
    with whole_file(target) as part:
        part.write_text("second")
        target.unlink()
        target.symlink_to(victim)  # planted while it is written
    assert target.read_text() == "second" and not target.is_symlink() and victim.read_text() == "mine"
    link = tmp_path / "link"
    link.symlink_to(victim)
    with pytest.raises(ValueError, match="link is a link; give the file itself"), whole_file(link):
        pass
    assert victim.read_text() == "mine"


def test_permissions_are_those_of_ordinary_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain.txt").write_text("")
    write(tmp_path / "out", "first")
    with whole_file(tmp_path / "out.txt") as part:
        part.write_text("")
    for made, plain in (("out", "plain"), ("out.txt", "plain.txt")):
        assert (tmp_path / made).stat().st_mode == (tmp_path / plain).stat().st_mode
