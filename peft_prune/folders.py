"""Write a folder whole or not at all, and find out early where nothing can be written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_writable(path: Path, option: str = "out") -> None:
    """Raise ValueError where nothing could be put beside ``path``, which need not exist, nor its folder.

    Args:
        path: What is to be written.
        option: The name under which it was asked for.
    """
    parent = next(folder for folder in path.resolve().parents if folder.exists())
    if not parent.is_dir():
        raise ValueError(f"{option}: {path} cannot be written, for {parent} is a file")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be written into {parent}: {error.strerror}") from None


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends without an error.

    Raises:
        ValueError: ``path`` exists and is not an empty folder, and ``overwrite`` is not set.
    """
    occupied = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if occupied and not overwrite:
        raise ValueError(f"out: {path} exists; give another folder, or --overwrite")
    require_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
