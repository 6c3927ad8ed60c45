"""Turn a report into one HTML file that needs nothing else."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import MissingPackageError
from ..folders import whole_file
from ..outputs import require_file_place
from .document import Cell, Chart, Report, Table

TEMPLATES = Path(__file__).parent / "templates"


def render(report: Report, made_at: datetime | None = None) -> str:
    """The report as HTML, with its style, script and pictures inside.

    Args:
        report: The report.
        made_at: When it was made; now if not given.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError:
        raise MissingPackageError("jinja2 is not installed; pip install 'peft-prune[report]'") from None
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests |= {"chart": _is_chart, "table": _is_table}
    environment.filters["cell"] = _cell
    when = made_at or datetime.now(timezone.utc)
    return environment.get_template("report.html").render(
        report=report,
        made_at=when.strftime("%Y-%m-%d %H:%M"),
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
    )


def require_report(path: Path) -> None:
    """Raise ValueError where a report could not be written, or would take the place of something else than a report."""
    require_file_place(path)
    if path.exists() and not _is_page(path):
        raise ValueError(f"out: {path} exists and is no HTML file; give another name")


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        beginning = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return not beginning or beginning.startswith((b"<!doctype html", b"<html"))


def write_report(report: Report, path: str | Path) -> None:
    """Write a report, whole or not at all.

    Raises:
        MissingPackageError: jinja2 is not installed.
        ValueError: ``path`` is a folder or a link.
        OSError: The file cannot be written.
    """
    text = render(report)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _is_chart(block: Any) -> bool:
    return isinstance(block, Chart)


def _is_table(block: Any) -> bool:
    return isinstance(block, Table)


def _cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)
