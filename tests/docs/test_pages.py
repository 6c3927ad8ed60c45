"""README, the tutorial and other pages are typed as they are printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from peft_prune.editors import EDITORS
from tests.docs.typed import blocks, commands, type_page

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.stem)
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
