"""README, the tutorial and other pages are typed as they are printed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from peft_prune.editors import EDITORS
from tests.docs.scene import ON_PAGE, Scene
from tests.docs.typed import blocks, commands, type_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "examples").rglob("*.md"))
ELSEWHERE = ("README.md", "docs/tutorial.md", "docs/howto/write-an-editor.md", "CONTRIBUTING.md")
"""Pages that have a test of their own, in an empty folder."""
CODE = [path for folder in ("peft_prune", "examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
IN_DOCSTRING = re.compile(r"^ *(?:>>> |```|\$ |peft-prune \w|python \S+\.py|from \w\S* import |import \w+$)", re.M)
RUN_BY_EXAMPLES = re.compile(r"^ *python (examples|benchmarks)/(\w+\.py)", re.M)


@pytest.mark.parametrize("page, least", [("README.md", 11), ("docs/tutorial.md", 13)])
def test_a_page_runs_as_it_is_printed(page: str, least: int, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert type_page(ROOT / page) >= least


def test_the_editor_that_the_docs_write_edits(tmp_path, monkeypatch) -> None:
    from peft_prune import EditSession, load_builtin_model, load_requests

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("peft_prune.editors.base.EDITORS", dict(EDITORS))
    assert type_page(ROOT / "docs/howto/write-an-editor.md") == 1
    (facts,) = [block.text for block in blocks(ROOT / "README.md") if block.title == "edits.jsonl"]
    Path("edits.jsonl").write_text(facts)
    model, tokenizer = load_builtin_model()
    with EditSession(model, tokenizer, "plain_key", monitor=False) as session:
        results = session.edit(load_requests("edits.jsonl")[:1])
    assert results[0].took


def test_the_restraint_that_the_docs_write_restrains(monkeypatch) -> None:
    import torch

    from peft_prune.spectral import restraint

    monkeypatch.setattr(restraint, "_REGISTRY", dict(restraint._REGISTRY))
    assert type_page(ROOT / "CONTRIBUTING.md") == 1
    found = restraint.get_restraint("sqrt")
    assert torch.allclose(found(torch.tensor([1.0, 16.0]), 4.0), torch.tensor([1.0, 8.0]))


def has_run_blocks(page: Path) -> bool:
    return any(block.is_run for block in blocks(page)) and str(page.relative_to(ROOT)) not in ELSEWHERE


@pytest.mark.parametrize("page", filter(has_run_blocks, PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs(page: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert type_page(page, Scene(ON_PAGE.get(page.name))) >= 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    found = list(blocks(page))
    problems = [f"{page.name}:{block.line}: {problem}" for block in found if (problem := block.problem())]
    assert not problems
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^ *(?:```|~~~)", text, re.M)) == 2 * len(found), "a fence that is not read here"
    marks = re.findall(r"^ *<!-- not run:", text, re.M)
    assert len(marks) == sum(not block.is_run for block in found), "a mark without a reason, or without its block"


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node, clean=False) or ""


def test_code_in_docstrings_is_run_by_the_tests_of_the_examples() -> None:
    """Docstrings hold no code but the lines that start a recipe, each of which has a test in tests/examples."""
    for path in CODE:
        for text in docstrings(path):
            own = [found[2] for found in RUN_BY_EXAMPLES.finditer(text)]
            assert set(own) <= {path.name}, f"{path.name} shows how to run another file"
            assert len(IN_DOCSTRING.findall(text)) == len(own), f"{path.relative_to(ROOT)}: code that no test runs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_on_a_page_exists(page: Path) -> None:
    import typer

    from peft_prune.cli.app import app

    known: dict[str, typer.core.TyperCommand] = typer.main.get_command(app).commands
    for block in blocks(page):
        if block.kind != "console":
            continue
        for words in commands(block.text):
            if words[0] != "peft-prune" or words[1].startswith("--"):
                continue
            assert words[1] in known, f"{page.name}:{block.line}: {words[1]}"
            accepted = {name for one in known[words[1]].params for name in (*one.opts, *one.secondary_opts)}
            given = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            assert given <= accepted, f"{page.name}:{block.line}: {sorted(given - accepted)}"
