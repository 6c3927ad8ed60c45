"""Reports for people who do not read code: one HTML file on a history, an adapter, or checkpoints."""

from .adapter_page import adapter_report
from .audit_page import audit_report
from .document import Report
from .history_page import history_report
from .now import Now
from .render import render, require_report, write_report

__all__ = [
    "Now",
    "Report",
    "adapter_report",
    "audit_report",
    "history_report",
    "render",
    "require_report",
    "write_report",
]
