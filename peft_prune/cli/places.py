"""Where the model stands that a command is given: a folder, a Hub name, or a name of its own."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UnsupportedModelError
from ..folders import recover

BUILTIN = "builtin"
"""What the model that comes with the package is called on the command line."""

OWN_NAMES = (BUILTIN, "smollm2", "gemma3")
"""The names that need neither a folder nor the Hub; a folder of such a name goes before them."""

HUB_NAME = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")


class InGguf(str):
    """A folder or a Hub name, and the name of the GGUF file there that holds the model."""

    gguf_file: str


def in_gguf(model: str, gguf_file: str | None) -> str:
    """The place of a model whose weights are in a GGUF file of its folder or repository, where one is given.

    Raises:
        UnsupportedModelError: The folder has no such file, it is no GGUF file, or the model has a name of its own.
    """
    if gguf_file is None:
        return model
    if Path(model).is_dir():
        from ..models.gguf import require_gguf_file

        require_gguf_file(Path(model, gguf_file))
    elif has_own_name(model) or not HUB_NAME.fullmatch(model):
        raise UnsupportedModelError(f"gguf_file: {gguf_file} needs a model's folder or Hub name, got {model!r}")
    place = InGguf(model)
    place.gguf_file = gguf_file
    return place


def in_optional_gguf(model: str | None, gguf_file: str | None, option: str = "model") -> str | None:
    """As `in_gguf`, for a model that need not be given.

    Raises:
        UnsupportedModelError: As `in_gguf`.
        ValueError: A file is given, and no model.
    """
    if model is None and gguf_file is not None:
        raise ValueError(f"gguf_file: {gguf_file} needs --{option}, the folder or Hub name that it is in")
    return None if model is None else in_gguf(model, gguf_file)


def gguf_file_of(model: str) -> str | None:
    """The GGUF file that `in_gguf` was given for a model."""
    return model.gguf_file if isinstance(model, InGguf) else None


def has_own_name(given: str) -> bool:
    """Whether a model is given by a name of `OWN_NAMES`, and not by a folder that is called so."""
    return given in OWN_NAMES and not Path(given).exists()


def own_model_path(given: str) -> Path | None:
    """Folder of a model that is given by a name of its own; None for any other.

    Raises:
        MissingPackageError: It is a real model's name, and its package is not installed.
    """
    if not has_own_name(given):
        return None
    from ..builtin import builtin_model_path
    from ..real import real_model_path

    return builtin_model_path() if given == BUILTIN else real_model_path(given)


def place_of(given: str) -> str:
    """Where transformers finds a model that is given by its folder, its Hub name or a name of its own.

    Raises:
        UnsupportedModelError: It is none of them.
        MissingPackageError: It is a real model's name, and its package is not installed.
    """
    folder = Path(given)
    if not folder.exists():
        recover(folder)
    own = own_model_path(given)
    if own is not None:
        return str(own)
    if folder.is_file() and folder.suffix == ".gguf":
        raise UnsupportedModelError(
            f"model: {given} is a file; give its folder by --model, and --gguf-file {folder.name}"
        )
    if folder.is_dir() and gguf_file_of(given) is None and not (folder / "config.json").is_file():
        raise UnsupportedModelError(_no_config(folder))
    if not folder.exists() and not HUB_NAME.fullmatch(given):
        raise UnsupportedModelError(f"model: {given!r} does not exist")
    return str(given)


def _no_config(folder: Path) -> str:
    held = sorted(file.name for file in folder.glob("*.gguf"))
    more = f"; of its GGUF files give one by --gguf-file, such as {held[0]}" if held else ""
    return f"model: {folder} is no model's folder, it has no config.json{more}"
