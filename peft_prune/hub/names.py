"""``user/name[@revision]``: what is no path here is a repository on the Hub."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from ..folders import recover
from ..tuner.stored import CONFIG, WEIGHTS
from .errors import HubError, on_the_hub

_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[^@\s]+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_STRIP = 1 << 20


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub.

    Args:
        name: ``user/name``.
        revision: A branch, a tag or a commit; None for the default branch.
    """

    name: str
    revision: str | None = None

    @classmethod
    def of(cls, given: str | Path) -> HubName | None:
        """The repository that ``user/name[@revision]`` names; None where the text can be no such name."""
        found = _NAME.fullmatch(str(given))
        return None if found is None else cls(found["name"], found["revision"])

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def adapter_folder(given: str | Path) -> Path:
    """The folder of an adapter: that of this machine, or else the repository ``user/name[@revision]``, fetched.

    What can be neither is given back as it is, to be complained of where it is read.

    Raises:
        HubError: The repository cannot be fetched, or holds no adapter.
    """
    path = Path(given)
    if not path.exists():
        recover(path)
    name = HubName.of(given)
    if path.exists() or name is None:
        return path
    files = [CONFIG, WEIGHTS, "README.md"]
    folder = fetched(name, files)
    if not (folder / CONFIG).is_file():
        raise HubError(f"hub: {name}: holds no {CONFIG}, so it is no adapter")
    return folder


def fetched(name: HubName, files: list[str]) -> Path:
    """The folder in the cache with these files of a repository, as far as it has them; large ones have been checked.

    Raises:
        HubError: It cannot be fetched, or a file is not what the Hub says that it is.
    """
    with on_the_hub(str(name), "fetch"):
        folder = Path(snapshot_download(name.name, revision=name.revision, allow_patterns=files))
    for file in files:
        if (folder / file).is_file():
            _require_checksum(name, folder / file)
    return folder


def _require_checksum(name: HubName, file: Path) -> None:
    """Raise HubError where a large file differs from the SHA-256 under which the cache keeps it, and forget it."""
    blob = file.resolve()
    if not _SHA256.fullmatch(blob.name):
        return
    sha = hashlib.sha256()
    with blob.open("rb") as opened:
        while part := opened.read(_STRIP):
            sha.update(part)
    if sha.hexdigest() != blob.name:
        file.unlink()
        blob.unlink()
        raise HubError(f"hub: {name}: {file.name} arrived damaged (its checksum is another); fetch it again")
