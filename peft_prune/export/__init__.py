"""Exports: an adapter as a plain LoRA, in the forms that servers load without this package."""

from .door import FORMATS, Export, export_lora, require_format
from .lost import lost_edits
from .servers import SERVERS, Server

__all__ = ["FORMATS", "SERVERS", "Export", "Server", "export_lora", "lost_edits", "require_format"]
