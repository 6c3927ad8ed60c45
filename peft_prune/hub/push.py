"""Publish an adapter: its folder is made ready aside, and goes to the Hub in one commit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from ..cards import has_section, own_text, take_text
from ..errors import AdapterError
from ..tuner.card import write_card
from ..tuner.card_layers import SECTION as LAYERS
from ..tuner.card_layers import write_layers
from ..tuner.stored import CONFIG, LORA, WEIGHTS, read_config, store_in_own_basis, store_lora, updates_of
from .errors import HubError, on_the_hub
from .measured import PICTURE, write_measured
from .names import HubName

_REPLACED = [f"{LORA}/*", "adapter_model.*", PICTURE]
"""What an adapter of before leaves in a repository; what takes its place is not deleted first."""
_STARTS_WITH = {".gitattributes", "README.md"}


@dataclass(frozen=True)
class Destination:
    """Where, and how, an adapter is published.

    Args:
        name: ``user/name``.
        private: Whether a new repository is private; None leaves that to the Hub.
        revision: Branch to write, made where it is missing; the default branch if not given.
        create_pr: Propose the change as a pull request instead of making it.
        message: Message of the commit.
        overwrite: Whether a repository that already holds files takes another commit.
        token: Token of the Hub; the one of the login if not given.

    Raises:
        ValueError: The name is none of a repository, or the options exclude each other.
    """

    name: str
    private: bool | None = True
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    overwrite: bool = False
    token: str | bool | None = None

    def __post_init__(self) -> None:
        found = HubName.of(self.name)
        if found is None or found.revision is not None:
            raise ValueError(f"repository: {self.name!r} must be user/name; a branch is given as revision")
        if self.create_pr and self.revision is not None:
            raise ValueError(f"revision: {self.revision!r} does not go with create_pr, which the default branch gets")
        if self.message is not None and not self.message.strip():
            raise ValueError("message: must not be empty")


def push_folder(
    folder: str | Path,
    destination: Destination,
    *,
    evaluation: Mapping[str, Any] | None = None,
    also_lora: bool = False,
    prepare: Callable[[Path], None] | None = None,
) -> str:
    """Publish a saved adapter; the URL of the commit or of the pull request.

    The factors leave in the basis that follows from ΔW alone, and nothing goes along but the adapter, its card and a
    LoRA where one is there or asked for: no history, no other file of the folder.

    Args:
        folder: The adapter's folder.
        destination: Where to.
        evaluation: Figures as ``peft-prune evaluate --json`` prints them, for the card.
        also_lora: Write the same update as a LoRA beside it.
        prepare: Called with the folder that is about to be published.

    Raises:
        AdapterError: The folder holds no whole adapter.
        HubError: The Hub refuses it, or holds another adapter there; nothing was published.
    """
    folder = Path(folder)
    read_config(folder)
    with tempfile.TemporaryDirectory() as made:
        staged = Path(made)
        _stage(folder, staged, also_lora=also_lora)
        if prepare is not None:
            prepare(staged)
        if evaluation is not None:
            write_measured(staged, evaluation)
        return upload(staged, destination, keeps_card=not own_text(staged / "README.md"))


def upload(folder: Path, destination: Destination, *, keeps_card: bool = False, what: str = "adapter") -> str:
    """Put a folder into a repository, which is made where it is missing, in one commit; the commit's URL.

    Args:
        folder: The folder.
        destination: Where to.
        keeps_card: Write the generated sections of the folder's card into the card that the repository has.
        what: What it is, for the message of the commit.

    Raises:
        HubError: The Hub refuses it; nothing was published.
    """
    api, name, token = HfApi(), destination.name, destination.token
    with on_the_hub(name, "push"):
        held = _held(api, destination)
        if held and not destination.overwrite and not destination.create_pr:
            raise HubError(
                f"hub: {name}: exists and holds {sorted(held)[0]}; --overwrite puts a commit on it, --create-pr "
                "proposes one"
            )
        api.create_repo(name, private=destination.private, exist_ok=True, token=token)
        if destination.revision is not None:
            api.create_branch(name, branch=destination.revision, exist_ok=True, token=token)
        if keeps_card:
            _keep_card(api, folder / "README.md", destination)
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=destination.message or f"Upload {what} with peft-prune",
            revision=destination.revision,
            create_pr=destination.create_pr,
            delete_patterns=_REPLACED,
            token=token,
        )
    return str(done.pr_url or done.commit_url)


def _stage(folder: Path, staged: Path, *, also_lora: bool) -> None:
    for file in (CONFIG, WEIGHTS, "README.md"):
        if (folder / file).is_file():
            shutil.copyfile(folder / file, staged / file)
    store_in_own_basis(staged)
    had = folder / LORA / CONFIG
    if also_lora or had.is_file():
        fan_in_fan_out = had.is_file() and '"fan_in_fan_out": true' in had.read_text(encoding="utf-8")
        store_lora(staged, fan_in_fan_out=fan_in_fan_out)
    try:
        write_card(staged / "README.md", read_config(staged), lora=(staged / LORA).is_dir())
        if not has_section(staged / "README.md", LAYERS):
            write_layers(staged / "README.md", updates_of(staged))
    except ValueError as error:
        raise AdapterError(str(error)) from None


def _held(api: HfApi, destination: Destination) -> set[str]:
    """The files of the repository at the destination's branch, but for those that a new one starts with."""
    try:
        files = api.list_repo_files(destination.name, revision=destination.revision, token=destination.token)
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
        return set()  # a token that is not accepted shows when the repository is made
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return set()
        raise
    return set(files) - _STARTS_WITH


def _keep_card(api: HfApi, card: Path, destination: Destination) -> None:
    """Put the generated sections into the card that people have written into on the Hub, where there is one."""
    if not api.file_exists(destination.name, "README.md", revision=destination.revision, token=destination.token):
        return
    found = api.hf_hub_download(
        destination.name, "README.md", revision=destination.revision, token=destination.token, force_download=True
    )
    theirs = card.with_name("theirs.md")
    shutil.copyfile(found, theirs)
    try:
        take_text(card, theirs)
    finally:
        theirs.unlink()
