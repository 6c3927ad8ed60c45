"""(being written)"""
from __future__ import annotations

import hashlib

from torch import nn


def base_fingerprint(model: nn.Module) -> str | None:
    h = hashlib.sha256()
    for n, p in model.named_parameters():
        if "prune_edit" in n: continue
        if p.is_meta or not p.is_floating_point(): return None
        h.update(n.replace("base_layer.","").encode()); h.update(p.detach().flatten()[:16].float().numpy().tobytes())
    return h.hexdigest()[:16]


def same_base(one: str, other: str) -> bool:
    return one == other
