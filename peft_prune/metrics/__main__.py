"""`python -m peft_prune.metrics NAME --out DIR`: write the Spaces of modules."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import PeftPruneError
from .folders import METRICS
from .space import write_space


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m peft_prune.metrics", description="Write modules of evaluate as Spaces of the Hub."
    )
    parser.add_argument("names", metavar="NAME", nargs="+", choices=METRICS, help=f"Of {', '.join(METRICS)}.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the Spaces; each becomes OUT/NAME.")
    parser.add_argument("--overwrite", action="store_true", help="Replace folders that are there.")
    given = parser.parse_args(arguments)
    for name in given.names:
        try:
            print(write_space(name, given.out, overwrite=given.overwrite))
        except (PeftPruneError, ValueError, OSError) as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
