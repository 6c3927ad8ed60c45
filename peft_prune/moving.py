"""How far something is that takes long: a moving bar on a terminal, and elsewhere a line every few seconds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from .processes import is_main

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS = 5.0
"""Between two lines, where there is no terminal; what is over sooner gives none."""


UP = "\x1b[A"
"""With which tqdm goes back to the line of a bar around another one."""


def moving_bar(**options: Any) -> tqdm:
    """tqdm's bar, which takes the same options."""
    from tqdm import tqdm

    if not is_main():
        return tqdm(**{**options, "disable": True})
    if sys.stderr.isatty():
        return tqdm(**options)
    line = "{desc}: {n_fmt} of {total_fmt}{unit}, {elapsed} gone, about {remaining} left{postfix}"
    line = line if options.get("total") else "{desc}: {n_fmt}{unit}, {elapsed} gone{postfix}"
    unit = f" {options['unit'].strip()}" if "unit" in options else ""
    settings: dict[str, Any] = {"mininterval": SECONDS, "maxinterval": SECONDS, "delay": SECONDS, "bar_format": line}
    settings["smoothing"] = 0  # what comes in large pieces, as batches do, has no meaning in the moment
    return tqdm(file=_Lines(sys.stderr), **{**options, **settings, "unit": unit, "leave": False})


class _Lines:
    """What tqdm draws over itself, as lines one below the other."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.replace("\r", "").replace(UP, "").strip()
        if line:
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()
