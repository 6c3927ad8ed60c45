"""Exports: an adapter as a plain LoRA, in the forms that servers load without this package."""

from .door import FORMATS, Export, export_lora, require_format
from .lost import lost_edits
from .merged_gguf import QUANTIZATIONS, MergedGguf, lost_in_gguf, merge_into_gguf, require_quantization
from .servers import SERVERS, Server

__all__ = [
    "FORMATS",
    "QUANTIZATIONS",
    "SERVERS",
    "Export",
    "MergedGguf",
    "Server",
    "export_lora",
    "lost_edits",
    "lost_in_gguf",
    "merge_into_gguf",
    "require_format",
    "require_quantization",
]
