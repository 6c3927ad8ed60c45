"""The rules that hold for every file of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Set
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
    "consolidation": 3,
    "monitoring": 3,
    "evaluation": 4,
    "metrics": 4,
    "reporting": 4,
    "experiment": 4,
    "hub": 4,
    "audit": 4,
    "export": 4,
    "builtin": 4,
    "real": 4,
    "cli": 5,
}
FORBIDDEN = {"spectral": {"peft", "transformers", "accelerate"}, "models": {"peft"}, "requests": {"peft"}}
"""Libraries that the lowest floor must not know."""

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def folder_of(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def module_of(path: Path) -> str:
    """A file's name as a module of the package, "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """All that a file imports, wherever in it and for checkers too; from this package with its full name."""
    package = ["peft_prune", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, or names of which it imports."""
    found = set()
    for name in imported(path):
        own = name.removeprefix("peft_prune").removeprefix(".")
        if name.split(".")[0] == "peft_prune":
            found.add(own if own in MODULES else own.rpartition(".")[0])
    return found - {module_of(path)}


def imported_folders(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(path)} & set(FLOORS)


def circles(graph: Mapping[str, Set[str]]) -> set[frozenset[str]]:
    """The groups of modules of which each is reached from each other."""
    reached: dict[str, set[str]] = {}
    for module in graph:
        reached[module], ahead = set(), [module]
        while ahead:
            new = graph.get(ahead.pop(), set()) - reached[module]
            reached[module] |= new
            ahead += new
    return {
        frozenset(other for other in reached[module] if module in reached.get(other, ()))
        for module in graph
        if module in reached[module]
    }


def test_every_folder_has_a_floor() -> None:
    assert {folder_of(path) for path in FILES} - {None} == set(FLOORS)


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
        libraries = {name.split(".")[0] for name in imported(path)}
        assert libraries & FORBIDDEN[own] == set()
        assert imported_folders(path) <= {own, "spectral"}


def test_no_two_files_import_each_other_by_any_way() -> None:
    assert circles({name: imported_modules(path) for name, path in MODULES.items()}) == set()


def test_no_two_folders_import_each_other_by_any_way() -> None:
    graph: dict[str, set[str]] = {folder: set() for folder in FLOORS}
    for path in FILES:
        own = folder_of(path)
        if own is not None:
            graph[own] |= imported_folders(path) - {own}
    assert circles(graph) == set()


def test_a_circle_is_found_and_a_chain_is_none() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "b"}}) == {frozenset({"b", "c"})}


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
