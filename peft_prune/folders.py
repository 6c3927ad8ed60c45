"""Write folders and files whole or not at all: what is killed at any instant leaves one whole version of them.

What is being written lies in a folder of its own beside the target, whose name begins with `MARK` and which its process
holds locked. It takes the target's place in one step: a file by a rename, a folder that replaces another by an exchange
of the two names where the system has one (Linux). Elsewhere the old folder is put aside first, and whoever comes next
puts it back, should the process have died between the two steps. Those of dead processes are removed by the next one
that writes into the same folder. Of several processes of one job rank 0 alone writes; what the others write is dropped.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .outputs import require_file_place, require_room
from .processes import is_main

if TYPE_CHECKING:
    from filelock import FileLock

MARK = ".peft-prune-"
"""How the names of temporary folders begin."""

_NEW, _OLD, _LOCK, _GONE = "new", "old", "lock", "-gone"
_TEMPORARY = re.compile(rf"{re.escape(MARK)}[a-z0-9_]{{8}}({_GONE})?")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that takes the place of ``path`` when the block ends without an error.

    Raises:
        ValueError: ``path`` is a file or a link, cannot be written, or is a folder with something in it and
            ``overwrite`` is not set.
        OSError: The disk is full, or the folder cannot take its place; what stood there stands there still.
    """
    if not is_main():
        with _unwanted(path) as place:
            place.mkdir()
            yield place
        return
    recover(path)
    require_room(path, overwrite)
    with _beside(path) as (temporary, new):
        new.mkdir()
        yield new
        _sync_all(new)
        if overwrite and path.is_dir() and any(path.iterdir()):
            _exchange(temporary, new, path)
        else:
            os.replace(new, path)  # fails where something has come to stand there meanwhile


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file's temporary path, of the same name, that takes its place when the block ends without an error.

    The block must write it. The target is replaced and never written through: a link that stands there is refused.

    Raises:
        ValueError: ``path`` is a folder or a link, or cannot be written.
        OSError: The disk is full, or the file cannot take its place; what stood there stands there still.
    """
    path = Path(path)
    if not is_main():
        with _unwanted(path) as place:
            yield place
        return
    require_file_place(path)
    with _beside(path) as (_, new):
        yield new
        _sync(new)
        os.replace(new, path)


def recover(path: Path) -> None:
    """Put a folder back that a process which died had put aside, and remove what such processes left beside it."""
    folder = path.resolve().parent
    if not folder.is_dir():
        return
    for name in os.listdir(folder):
        if _TEMPORARY.fullmatch(name) and not (folder / name).is_symlink():
            _clear_if_dead(folder / name)


@contextmanager
def _unwanted(path: Path) -> Iterator[Path]:
    """A place of the same name for what a process writes that is not the first of its job; it goes in the end."""
    with tempfile.TemporaryDirectory(prefix=MARK) as folder:
        yield Path(folder) / path.name


@contextmanager
def _beside(path: Path) -> Iterator[tuple[Path, Path]]:
    """A locked temporary folder in the target's folder, and the place of what is new in it; both go in the end."""
    path = path.resolve()
    made = _made(path.parent)
    recover(path)
    temporary, lock = _locked(path.parent)
    (temporary / _NEW).mkdir()
    try:
        yield temporary, temporary / _NEW / path.name
        _sync(path.parent)
    except BaseException:
        _clear(temporary, lock)
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise
    _clear(temporary, lock)


def _made(folder: Path) -> list[Path]:
    """Make a folder with its parents; those that were not there before, the deepest first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _locked(parent: Path) -> tuple[Path, FileLock]:
    from filelock import FileLock, Timeout

    while True:
        temporary = Path(tempfile.mkdtemp(prefix=MARK, dir=parent))
        lock = FileLock(temporary / _LOCK)
        try:
            lock.acquire(blocking=False)
            return temporary, lock
        except (Timeout, FileNotFoundError):
            # another process took the new folder for a dead one's, in the moment before it was locked
            shutil.rmtree(temporary, ignore_errors=True)


def _clear_if_dead(temporary: Path) -> None:
    from filelock import FileLock, Timeout

    lock = FileLock(temporary / _LOCK)
    try:
        lock.acquire(blocking=False)
        _clear(temporary, lock)
    except (Timeout, OSError):
        return  # its process lives, it is another user's, or nothing may be written here


def _clear(temporary: Path, lock: FileLock) -> None:
    """Remove a temporary folder, after putting back an old version that was put aside and not replaced."""
    try:
        gone = temporary
        if not temporary.name.endswith(_GONE):
            _put_back(temporary)
            # under another name before it is taken apart, so that half of a version is never put back
            gone = temporary.with_name(temporary.name + _GONE)
            os.replace(temporary, gone)
        shutil.rmtree(gone, ignore_errors=True)
    finally:
        lock.release()


def _put_back(temporary: Path) -> None:
    old = temporary / _OLD
    for aside in old.iterdir() if old.is_dir() else ():
        target = temporary.parent / aside.name
        if not os.path.lexists(target):
            os.replace(aside, target)
            _sync(target.parent)


def _exchange(temporary: Path, new: Path, path: Path) -> None:
    """Put ``new`` in the place of ``path``, whose old version is then in the temporary folder."""
    if _swapped(new, path):
        return
    aside = temporary / _OLD / new.name
    aside.parent.mkdir()
    os.replace(path, aside)
    # a process that fails or dies here leaves the old version aside, from where it is put back
    os.replace(new, path)


def _swapped(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if exchange is None:
        return False
    if exchange(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _sync_all(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk, where the system can be asked for that."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
