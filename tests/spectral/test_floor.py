from __future__ import annotations

import ast
import sys
from pathlib import Path

import peft_prune.spectral


def test_spectral_imports_torch_and_nothing_above_it() -> None:
    folder = Path(peft_prune.spectral.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path.name} imports from above its floor"
                names = [node.module or ""] if node.level == 0 else []
            for name in names:
                root = name.split(".")[0]
                assert root == "torch" or root in sys.stdlib_module_names, f"{path.name} imports {name}"
