"""Keep off standard error what quantization libraries say when they are imported and nothing is wrong.

PEFT and transformers import bitsandbytes and torchao where they are installed, used or not. On a processor with
AVX512-BF16 bitsandbytes then says that it has no kernel from the Hub (its own is used), and torchao names each compiled
file that was not made for this machine. Only these messages are dropped.
"""

from __future__ import annotations

import logging

_DROPPED = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "torchao": "Failed to load ",
    "torch.utils._pytree": "<enum ",
}
"""The beginning of what is dropped, by logger."""


def _is_kept(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_DROPPED[record.name])


for _name in _DROPPED:
    logging.getLogger(_name).addFilter(_is_kept)
