"""(being written) structural facts"""
from __future__ import annotations

import re

from torch import nn


def mlp_output_modules(model: nn.Module) -> list[str]:
    return [n for n, _ in model.named_modules() if re.search(r"\.\d+\.mlp\.(c_proj|down_proj)$", n)]
