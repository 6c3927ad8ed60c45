"""What the header of a saved adapter's file says of its layers, before anything is allocated for them."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import AdapterError
from .registration import PREFIX

_WRAPPERS = re.compile(r"(base_model\.model\.|_fsdp_wrapped_module\.|_orig_mod\.)")


def ranks_in_file(folder: Path) -> dict[str, int] | None:
    """The rank of every layer in a saved adapter, read from the header of its file; None where there is none here.

    Raises:
        AdapterError: The file is damaged.
    """
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return None
    ranks: dict[str, int] = {}
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():
                found = re.search(rf"\.{PREFIX}([AB])\.weight$", key)
                shape: list[int] = file.get_slice(key).get_shape() if found else []
                if found and len(shape) == 2:
                    ranks[name_in_base(key[: found.start()])] = shape[0] if found[1] == "A" else shape[1]
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"adapter: {path} cannot be read: {error}") from None
    return ranks


def name_in_base(name: str) -> str:
    """A module's name without what PEFT, FSDP and torch.compile put before and into it."""
    return _WRAPPERS.sub("", name)
