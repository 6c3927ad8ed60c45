"""Publish what is in memory: a session's adapter, and a PEFT model's, whose ``push_to_hub`` ends with our card."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel

from ..cards import add_tags, write_section
from ..errors import AdapterError
from ..session import EditSession, History
from ..tuner.stored import LORA
from .measured import write_measured
from .push import Destination, push_folder


def push_session(
    session: EditSession,
    repo_id: str,
    *,
    private: bool | None = True,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    overwrite: bool = False,
    also_lora: bool = False,
    redact: bool = True,
    evaluation: Mapping[str, Any] | None = None,
    token: str | bool | None = None,
) -> str:
    """Publish the adapter of a session with its card; the history stays here.

    Args:
        session: The session.
        repo_id: ``user/name``.
        private: Whether a new repository is private.
        revision: Branch to write, made where it is missing.
        create_pr: Propose the change as a pull request.
        commit_message: Message of the commit.
        overwrite: Whether a repository that holds files already takes another commit.
        also_lora: Put the same update as a plain LoRA beside it.
        redact: Leave the edits out of the card; off lists them in the clear.
        evaluation: What ``evaluate`` has returned, for the card.
        token: Token of the Hub; the one of the login if not given.

    Returns:
        URL of the commit, or of the pull request.

    Raises:
        ValueError: An option is not accepted.
        HubError: The Hub refuses it; nothing was published.
    """
    destination = Destination(repo_id, private, revision, create_pr, commit_message, overwrite, token)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "adapter"
        session.save(folder, also_lora=also_lora)
        if evaluation is not None:
            write_measured(folder, evaluation, redact=redact)
        if not redact:
            write_edits(folder / "README.md", session.history)
        return push_folder(folder, destination)


def write_edits(card: Path, history: History) -> None:
    """List the edits that stand in a card, in the clear."""
    requests = [record.request for record in history.edits(standing=True) if record.request is not None]
    rows = [f"| {_cell(one.text)} | {_cell(one.target_new)} |" for one in requests]
    write_section(card, "edits", "\n".join(["## The edits", "", "| prompt | answer |", "|---|---|", *rows]))


def push_model(
    model: PeftModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    also_lora: bool = False,
    **options: Any,
) -> str:
    """``model.push_to_hub`` of a model with a PRUNE_EDIT adapter: as PEFT's, a commit on whatever is there.

    Raises:
        AdapterError: The model has several adapters, or an option of whole models is given.
        HubError: The Hub refuses it; nothing was published.
    """
    for name in options:
        if name not in ("max_shard_size", "tags", "commit_description", "safe_serialization"):
            raise AdapterError(f"push_to_hub: {name} is no option for a PRUNE_EDIT adapter")
    (adapter,) = _only(model)
    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made, selected_adapters=[adapter], also_lora=also_lora)
        folder = Path(made) if adapter == "default" else Path(made) / adapter
        if options.get("tags"):
            tags = [options["tags"]] if isinstance(options["tags"], str) else options["tags"]
            add_tags(folder / "README.md", tags)
        destination = Destination(repo_id, private, revision, create_pr, commit_message, True, token)
        return push_folder(folder, destination, also_lora=(folder / LORA).is_dir())


def _only(model: PeftModel) -> list[str]:
    names = list(model.peft_config)
    if len(names) != 1:
        raise AdapterError(
            f"push_to_hub: the model has the adapters {', '.join(names)}, and a repository holds one; save one by "
            "save_pretrained(folder, selected_adapters=[...]) and push its folder"
        )
    return names


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
