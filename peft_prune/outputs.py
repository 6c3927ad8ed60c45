"""Where a command may write: nothing is replaced unasked, and an output never is, holds or lies in what is read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from .processes import is_main

Given: TypeAlias = "str | Path | Sequence[str | Path | None] | None"
"""A path, several, or none; a name that is no path here, as of a model on the Hub, can be given as well."""


def require_outputs(
    *,
    folders: Mapping[str, Path] | None = None,
    files: Mapping[str, Path | None] | None = None,
    inputs: Mapping[str, Given] | None = None,
    overwrite: bool = False,
) -> None:
    """Raise ValueError where an output could not be written, or would cost something that is read or written as well.

    Args:
        folders: Folders that are written whole, by the option that names them.
        files: Files that are written, by option; None where none is asked for.
        inputs: What is read, by what it is called in a message.
        overwrite: Whether folders that exist may be replaced.

    Rank 0 looks for all processes of a job: the others write nothing.
    """
    if not is_main():
        return
    folders = folders or {}
    given = {option: path for option, path in (files or {}).items() if path is not None}
    for option, path in folders.items():
        require_room(path, overwrite, option)
    for option, path in given.items():
        require_file_place(path, option)
    for option, path in folders.items():
        for others in (inputs or {}, _others(option, {**folders, **given})):
            require_apart(path, others, option)
    for option, path in given.items():
        for what, other in (*_paths(inputs or {}), *_paths(_others(option, given))):
            if _same(path, other):
                raise ValueError(f"{option}: {path} is the {what} as well; give another file")


def require_apart(folder: Path, others: Mapping[str, Given], option: str = "out") -> None:
    """Raise ValueError where a folder to be written is, holds or lies in something that is read, or written as well.

    Args:
        folder: The folder.
        others: Paths by what they are called in a message.
        option: The name under which the folder was asked for.
    """
    for what, other in _paths(others):
        if _same(folder, other):
            raise ValueError(f"{option}: {folder} is the {what} as well; give another folder")
        if _within(other, folder):
            raise ValueError(f"{option}: {folder} holds the {what} ({other}); give another folder")
        if _within(folder, other):
            raise ValueError(f"{option}: {folder} lies in the {what} ({other}); give another folder")


def require_room(path: Path, overwrite: bool = False, option: str = "out") -> None:
    """Raise ValueError where a folder cannot be written, or stands there already and may not be replaced.

    Args:
        path: The folder.
        overwrite: Whether one that exists may be replaced.
        option: The name under which it was asked for.
    """
    _require_no_link(path, option, "folder")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option}: {path} is a file; give a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise ValueError(f"{option}: {path} exists; give another folder, or --overwrite")
    if _within(Path.cwd(), path):
        raise ValueError(f"{option}: {path} is or holds the folder that this is run in; give another folder")
    if path.is_dir() and not os.access(path, os.W_OK):
        raise ValueError(f"{option}: {path} cannot be replaced, it is read-only")
    require_writable(path, option)


def require_file_place(path: Path, option: str = "out") -> None:
    """Raise ValueError where a file cannot be written: a link or a folder stands there, or its folder cannot be made.

    Args:
        path: The file; one that exists may be replaced.
        option: The name under which it was asked for.
    """
    _require_no_link(path, option, "file")
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{option}: {path} is no ordinary file; give another name")
    require_writable(path, option)


def require_writable(path: Path, option: str = "out") -> None:
    """Raise ValueError where nothing could be put beside ``path``, which need not exist, nor its folder.

    Args:
        path: What is to be written.
        option: The name under which it was asked for.
    """
    try:
        parent = next(folder for folder in path.resolve().parents if folder.exists())
        if not parent.is_dir():
            raise ValueError(f"{option}: {path} cannot be written, for {parent} is a file")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be written: {error.strerror}") from None


def _require_no_link(path: Path, option: str, wanted: str) -> None:
    try:
        is_link = path.is_symlink()
        path.exists()  # a name that is too long, or in a folder that may not be read, shows here
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{option}: {str(path)!r} cannot be written: {reason}") from None
    if is_link:
        raise ValueError(f"{option}: {path} is a link; give the {wanted} itself")


def _paths(inputs: Mapping[str, Given]) -> Iterator[tuple[str, Path]]:
    for what, given in inputs.items():
        several = [given] if given is None or isinstance(given, (str, Path)) else given
        for one in several:
            if one is not None and (isinstance(one, Path) or os.path.lexists(one)):
                yield what, Path(one)


def _others(option: str, outputs: Mapping[str, Path]) -> dict[str, Path]:
    return {other: path for other, path in outputs.items() if other != option}


def _within(inner: Path, outer: Path) -> bool:
    """Whether one path is the other or lies in it; both may be links, and neither need exist."""
    inner = inner.resolve()
    return any(_same(folder, outer) for folder in (inner, *inner.parents))


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)  # also under another spelling, where the file system does not tell case apart
    first, second = one.resolve(), other.resolve()
    if first == second:
        return True
    return str(first).casefold() == str(second).casefold() and _ignores_case(first)


def _ignores_case(path: Path) -> bool:
    """Whether the file system at a path that need not exist takes names that differ in case for the same."""
    found = next(folder for folder in (path, *path.parents) if folder.exists())
    swapped = found.with_name(found.name.swapcase()) if found.name else found
    return swapped != found and swapped.exists() and swapped.samefile(found)
