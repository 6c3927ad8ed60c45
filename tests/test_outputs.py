"""Outputs are never what is read, nor hold it, nor lie in it; what cannot be written shows at the door."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peft_prune.outputs import require_outputs


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base model, a run with its history, and texts, with the current folder beside them."""
    for name in ("base/weights", "run/edits.db", "texts.json", "here/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("run", "holds the history"),
        ("base", "is the model as well"),
        ("base/adapter", "lies in the model"),
        (".", "holds the"),
        ("here", "the folder that this is run in"),
        ("texts.json", "is a file; give a folder"),
        ("texts.json/out", "texts.json is a file"),
        ("link", "is a link; give the folder itself"),
        ("linked/adapter", "lies in the model"),
        ("here/../base", "is the model as well"),
        ("x" * 300, "cannot be written: File name too long"),
    ],
)
def test_a_folder_that_would_cost_an_input_is_refused(work: Path, out: str, message: str) -> None:
    (work / "link").symlink_to(work / "run")
    (work / "linked").symlink_to(work / "base")
    inputs = {"model": str(work / "base"), "history": work / "run" / "edits.db", "texts": None}
    if out == ".":
        inputs["file"] = work / "here" / "file"
        out, message = "here", "the folder that this is run in"
    with pytest.raises(ValueError, match=message) as refused:
        require_outputs(folders={"out": work / out}, inputs=inputs, overwrite=True)
    assert str(refused.value).startswith("out: ") and "\n" not in str(refused.value)


def test_relative_and_linked_paths_are_the_same_place(work: Path) -> None:
    (work / "alias").symlink_to(work / "run")
    for history in ("../run/edits.db", "../alias/edits.db"):
        with pytest.raises(ValueError, match="holds the history"):
            require_outputs(folders={"out": Path("../run")}, inputs={"history": history}, overwrite=True)


def test_outputs_are_kept_apart_from_each_other(work: Path) -> None:
    with pytest.raises(ValueError, match=r"out: .* holds the history"):
        require_outputs(folders={"out": work / "new"}, files={"history": work / "new" / "edits.db"})
    with pytest.raises(ValueError, match=r"out: .* is the plot as well"):
        require_outputs(folders={"out": work / "new"}, files={"plot": work / "new"})
    with pytest.raises(ValueError, match=r"plot: .* is the report as well"):
        require_outputs(files={"plot": work / "a.png", "report": work / "here" / ".." / "a.png"})
    with pytest.raises(ValueError, match=r"extract: .* lies in the out \("):
        require_outputs(folders={"extract": work / "new" / "adapter", "out": work / "new"})


def test_a_file_never_takes_the_place_of_an_input(work: Path) -> None:
    os.link(work / "texts.json", work / "same.json")
    (work / "link.json").symlink_to(work / "texts.json")
    for name, message in (
        ("texts.json", "is the texts as well"),
        ("same.json", "is the texts as well"),
        ("link.json", "is a link; give the file itself"),
        ("base", "is a folder; give the name of a file"),
        ("texts.json/plot.png", "texts.json is a file"),
    ):
        with pytest.raises(ValueError, match=f"plot: .*{message}"):
            require_outputs(files={"plot": work / name}, inputs={"texts": [work / "texts.json"]})


def test_what_exists_is_replaced_only_when_that_is_asked_for(work: Path) -> None:
    (work / "old").mkdir()
    require_outputs(folders={"out": work / "old"})  # an empty folder is nothing to lose
    (work / "old" / "file").write_text("mine")
    with pytest.raises(ValueError, match="old exists; give another folder, or --overwrite"):
        require_outputs(folders={"out": work / "old"})
    require_outputs(folders={"out": work / "old"}, overwrite=True)


def test_what_lies_apart_is_accepted_and_names_that_are_no_path_are_passed_over(work: Path) -> None:
    inputs = {"model": "owner/name", "requests": "hub:owner/name:train", "history": work / "run" / "edits.db"}
    require_outputs(
        folders={"out": work / "run-2"}, files={"plot": work / "run" / "plot.png", "none": None}, inputs=inputs
    )
    assert sorted(os.listdir(work)) == ["base", "here", "run", "texts.json"]


def test_a_read_only_folder_shows_at_the_door(work: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (work / "sealed").mkdir(mode=0o555)
    with pytest.raises(ValueError, match=r"out: .* cannot be written"):
        require_outputs(folders={"out": work / "sealed" / "out"})


def test_case_is_told_apart_only_where_the_file_system_does(work: Path) -> None:
    ignores = (work / "BASE").exists()
    if ignores:
        with pytest.raises(ValueError, match="is the model as well"):
            require_outputs(folders={"out": work / "BASE"}, inputs={"model": work / "base"}, overwrite=True)
    else:
        require_outputs(folders={"out": work / "BASE"}, inputs={"model": work / "base"})
