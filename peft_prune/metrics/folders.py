"""Where the modules stand."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent

METRICS = tuple(sorted(path.name for path in HERE.iterdir() if (path / f"{path.name}.py").is_file()))
"""Name of every module."""


def metric_path(name: str) -> str:
    """Folder of a module, for ``evaluate.load(metric_path("efficacy"))``; it is loaded from there without a network.

    Raises:
        ValueError: There is no such module.
    """
    if name not in METRICS:
        raise ValueError(f"metric: {name!r} is not one of {', '.join(METRICS)}")
    return str(HERE / name)
