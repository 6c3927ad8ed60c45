"""The notebook runs from its first cell to its last, and what it shows is what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.examples.test_examples import EXAMPLES

ROOT = EXAMPLES.parent


def test_own_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "own_fact.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    errors = "".join(one["text"] for one in outputs if one.get("name") == "stderr")
    assert not re.sub(r".*IProgress not found.*\n.*\n", "", errors), (
        "no library but tqdm speaks up, for want of widgets"
    )
    texts = [str(one.get("text") or one["data"]["text/plain"]) for one in outputs if one.get("name") != "stderr"]
    edited, answered, sizes = texts[1], texts[2], texts[3]
    assert edited.count(" applied ") == 2 and "Fenilaford" in edited and "Seloburg" in answered
    assert "σmax(W₀)" in sizes and "'efficacy'" in texts[4]
    assert "adapter_model.safetensors" in texts[-1] and "lora/" in texts[-1]
