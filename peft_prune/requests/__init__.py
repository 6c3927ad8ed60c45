"""Edit requests: the record, the forms of data sets, and their files."""

from .files import HUB, load_requests, read_records, read_text
from .question import Question
from .request import EditRequest

__all__ = ["HUB", "EditRequest", "Question", "load_requests", "read_records", "read_text"]
