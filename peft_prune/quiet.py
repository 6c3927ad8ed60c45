"""Keep off standard error what libraries say when nothing is wrong and nobody can act on it.

PEFT and transformers import bitsandbytes and torchao where they are installed, used or not. On a processor with
AVX512-BF16 bitsandbytes then says that it has no kernel from the Hub (its own is used), and torchao names each compiled
file that was not made for this machine. Saving an adapter, PEFT reads the card that it has just begun, and is told that
it has no metadata yet; wrapping a model, it asks for an attribute by the name that transformers has retired. Only these
messages are dropped, and a warning of Python not where ``PYTHONWARNINGS`` or ``python -W`` asks for it.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_DROPPED = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "huggingface_hub.repocard": "Repo card metadata block was not found",
    "torchao": "Failed to load ",
    "torch.utils._pytree": "<enum ",
}
"""The beginning of what is dropped, by logger."""


def _is_kept(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_DROPPED[record.name])


for _name in _DROPPED:
    logging.getLogger(_name).addFilter(_is_kept)
if not sys.warnoptions:
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)


@contextmanager
def no_bar() -> Iterator[None]:
    """Leave out the bar that transformers draws over the weights of a model, where the package loads its own."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
