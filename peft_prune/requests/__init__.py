"""Edit requests: the record, the forms of data sets, and their files."""

from .files import (
    HUB,
    ON_BAD_RECORD,
    BadRecord,
    LoadedRequests,
    load_requests,
    read_records,
    read_requests,
    read_text,
    require_on_bad_record,
)
from .question import Question
from .request import EditRequest

__all__ = [
    "HUB",
    "ON_BAD_RECORD",
    "BadRecord",
    "EditRequest",
    "LoadedRequests",
    "Question",
    "load_requests",
    "read_records",
    "read_requests",
    "read_text",
    "require_on_bad_record",
]
