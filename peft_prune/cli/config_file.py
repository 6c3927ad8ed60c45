"""A file of a command's options: `--config FILE.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_settings(path: Path, command: Any) -> dict[str, Any]:
    """The options of a file by the names of the command's parameters, as their values stand on a command line.

    Args:
        path: YAML: one mapping, whose keys are options without their dashes in front.
        command: The command that they are for.

    Raises:
        ValueError: The file is no such mapping, a key is no option of this command, or a value is none that it takes.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"config: {path} cannot be read: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"config: {path} must hold one mapping of options to values")
    known = named(command)
    unknown = [str(key) for key in content if _plain(key) not in known]
    if unknown:
        raise ValueError(
            f"config: {path}: {', '.join(unknown)}: no option of {command.name}; known are {', '.join(sorted(known))}"
        )
    found = {known[_plain(key)]: (key, value) for key, value in content.items() if value is not None}
    parameters = {one.name: one for one in command.params}
    return {name: _value(path, key, value, parameters[name]) for name, (key, value) in found.items()}


def named(command: Any) -> dict[str, str]:
    """The names of a command's parameters by what they are called in a file; `--config` itself is none of them."""
    found: dict[str, str] = {}
    for one in command.params:
        words = [word for word in one.opts if word.startswith("--")] or [one.name]
        found |= {_plain(word): one.name for word in words}
    for own in ("config", "help"):
        found.pop(own, None)
    return found


def _plain(key: object) -> str:
    return str(key).lstrip("-").replace("_", "-")


def _value(path: Path, key: object, value: Any, parameter: Any) -> Any:
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise ValueError(f"config: {path}: {key}: {value!r} must be true or false")
        return value
    several = getattr(parameter, "multiple", False) or parameter.nargs != 1
    if isinstance(value, dict) and several:
        return [f"{name}={_word(one)}" for name, one in value.items()]  # as of --set
    if isinstance(value, list):
        words = [_word(one) for one in value]
        return words if several else ",".join(words)
    if isinstance(value, dict):
        raise ValueError(f"config: {path}: {key}: a mapping is given; a single value is accepted")
    return [_word(value)] if several else _word(value)


def _word(value: Any) -> str:
    """A value as it would be typed."""
    import json

    return json.dumps(value) if isinstance(value, (list, dict, bool)) or value is None else str(value)
