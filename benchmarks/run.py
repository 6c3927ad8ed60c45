"""Run every ``bench_*.py`` beside this file and print one table of measured ratios against their goals.

A benchmark is a module with a function ``rows() -> Iterable[Row]``. ``--only NAME`` runs ``bench_NAME.py`` alone.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
from datetime import date
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))

from measure import Row  # noqa: E402

HEADINGS = ("what", "reference", "measured ratio", "goal", "goal met", "seconds, or bytes", "of the reference", "note")


def main() -> int:
    """Print the table, write it where asked, and return 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also write the table as markdown")
    parser.add_argument("--only", metavar="NAME", action="append", help="run bench_NAME.py only; may be repeated")
    arguments = parser.parse_args()
    names = sorted(path.stem for path in HERE.glob("bench_*.py"))
    if arguments.only:
        wanted = [f"bench_{name}" for name in arguments.only]
        unknown = sorted(set(wanted) - set(names))
        if unknown:
            known = ", ".join(name.removeprefix("bench_") for name in names)
            parser.error(f"--only: {unknown[0].removeprefix('bench_')!r} is unknown, known are {known}")
        names = wanted
    tables = {name: [_announced(row) for row in importlib.import_module(name).rows()] for name in names}
    _print_tables(tables)
    if arguments.markdown:
        arguments.markdown.write_text(_markdown(tables), encoding="utf-8")
    missed = [row.what for rows in tables.values() for row in rows if row.verdict == "not met"]
    print(f"{len(missed)} goal(s) not met: {'; '.join(missed)}" if missed else "all goals met")
    return 1 if missed else 0


def machine() -> str:
    """The machine and the versions that the figures belong to."""
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {date.today().isoformat()}"
    )


def _announced(row: Row) -> Row:
    print(f"{row.what}: {row.ratio_text} ({row.verdict})", flush=True)
    return row


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        row.reference,
        row.ratio_text,
        row.goal_text,
        row.verdict,
        row.measured,
        row.referenced,
        row.note,
    )


def _print_tables(tables: dict[str, list[Row]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 180)
    for name, rows in tables.items():
        table = Table(*HEADINGS, title=f"{name.removeprefix('bench_')} ({machine()})", show_lines=True)
        for row in rows:
            style = {"met": "green", "not met": "red"}.get(row.verdict, "")
            table.add_row(*_cells(row), style=style)
        console.print(table)


def _markdown(tables: dict[str, list[Row]]) -> str:
    lines = [f"Measured on {machine()}.", ""]
    for name, rows in tables.items():
        lines += [
            f"## {name.removeprefix('bench_')}",
            "",
            "| " + " | ".join(HEADINGS) + " |",
            "|---" * len(HEADINGS) + "|",
        ]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows] + [""]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
