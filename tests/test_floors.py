"""The rules that hold for every file of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "peft_prune"
FLOORS = {
    "spectral": 0,
    "models": 0,
    "requests": 0,
    "tuner": 1,
    "editors": 2,
    "session": 3,
    "monitoring": 3,
    "evaluation": 4,
    "metrics": 4,
    "reporting": 4,
    "experiment": 4,
    "audit": 4,
    "builtin": 4,
    "cli": 5,
}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def folder_of(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def imported_folders(path: Path) -> set[str]:
    """Folders of the package that a file imports from, through relative imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parent
            for _ in range(node.level - 1):
                base = base.parent
            target = base.joinpath(*(node.module or "").split("."))
            parts = target.relative_to(PACKAGE).parts
            found |= {parts[0]} if parts and parts[0] in FLOORS else set()
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = folder_of(path)
    if own is None:
        if path.name != "__init__.py":
            # single files stand below the floors, and may use the mathematics alone
            assert imported_folders(path) <= {"spectral"}
        return
    assert all(FLOORS[other] <= FLOORS[own] for other in imported_folders(path))
    if FLOORS[own] == 0:
        unknown = "(peft|transformers)" if own == "spectral" else "peft"
        assert not re.search(rf"^(from|import) {unknown}\b", path.read_text(), re.MULTILINE)
        assert imported_folders(path) <= {own, "spectral"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_code_chooses_a_device_or_unpickles(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"cuda|\.cuda\(|device\s*=\s*[\"'](cpu|cuda|mps)", text)
    assert not re.search(r"\bpickle\b|torch\.load\(", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_exception_is_swallowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: a bare except"
            silent = all(isinstance(statement, (ast.Pass, ast.Continue)) for statement in node.body)
            names = ast.unparse(node.type)
            # Enough is how this package itself ends a forward pass early
            assert not silent or names == "Enough", f"{path}:{node.lineno}: {names} is swallowed"


def test_public_functions_and_classes_have_docstrings() -> None:
    missing = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node) and node.name != "options":
                missing.append(f"{path.relative_to(PACKAGE)}:{node.name}")
    assert not missing
