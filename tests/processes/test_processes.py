"""Several processes on one job: the same figures as one gives, files of rank 0 alone, and one line when they part."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from peft_prune.errors import ProcessError
from peft_prune.processes import (
    WAIT,
    alone,
    is_main,
    launched,
    process_count,
    same,
    spread,
    start_processes,
    together,
    waiting_seconds,
    warn_if_unaware,
)
from tests.processes.job import work
from tests.processes.launching import launched as run_launched
from tests.processes.launching import side_by_side

Job = tuple[Path, list[dict[str, Tensor]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What each of two processes has found, and the folder that they wrote into."""
    folder = tmp_path_factory.mktemp("job")
    done = run_launched("-m", "tests.processes.job", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    tensors = [load_file(folder / f"rank-{rank}.safetensors") for rank in range(2)]
    return folder, tensors, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What one process finds."""
    return work(tmp_path_factory.mktemp("single"))


def furthest(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())


def test_two_processes_take_the_second_moment_of_all_texts(job: Job, single: Any) -> None:
    _, tensors, figures = job
    assert figures[0]["tokens"] == figures[1]["tokens"] == single[1]["tokens"]
    for own in tensors:
        assert furthest(own["moment"], single[0]["moment"]) < 1e-6


def test_two_processes_find_the_values_of_one(job: Job, single: Any) -> None:
    _, tensors, _ = job
    names = [name for name in single[0] if name.startswith("value")]
    assert len(names) == 5
    for name in names:
        assert furthest(tensors[0][name], single[0][name]) < 1e-4
        assert tensors[0][name].equal(tensors[1][name])


def test_every_process_holds_the_adapter_that_one_process_makes(job: Job, single: Any) -> None:
    _, tensors, figures = job
    expected = single[0]["B"] @ single[0]["A"]
    for own in tensors:
        assert furthest(own["B"] @ own["A"], expected) < 1e-4
    assert tensors[0]["A"].equal(tensors[1]["A"]) and tensors[0]["B"].equal(tensors[1]["B"])
    assert figures[0]["states"] == figures[1]["states"] == single[1]["states"]
    assert "applied" in figures[0]["states"]


def test_every_process_holds_what_rank_0_has_consolidated(job: Job, single: Any) -> None:
    _, tensors, figures = job
    assert all(0 < own["rows"] < 0.7 * single[1]["rows"] for own in figures)  # shared out
    assert tensors[0]["consolidated"].equal(tensors[1]["consolidated"])
    assert not tensors[0]["consolidated"].equal(tensors[0]["B"] @ tensors[0]["A"])
    assert furthest(tensors[0]["consolidated"], single[0]["consolidated"]) < 1e-3


def test_an_evaluation_that_is_shared_out_gives_the_same_figures(job: Job, single: Any) -> None:
    _, _, figures = job
    assert figures[0]["evaluation"] == figures[1]["evaluation"]
    assert flat(figures[0]["evaluation"]) == pytest.approx(flat(single[1]["evaluation"]), rel=1e-4, nan_ok=True)


def flat(figures: Any, name: str = "") -> dict[str, float]:
    """All numbers by where they stand."""
    if isinstance(figures, dict):
        return {own: value for key in figures for own, value in flat(figures[key], f"{name}/{key}").items()}
    return {} if figures is None else {name: figures}


def test_rank_0_alone_writes(job: Job) -> None:
    folder, _, _ = job
    found = {path.name for path in folder.iterdir() if not path.name.startswith(("rank-", "edits.db."))}
    assert found == {"adapter", "edits.db"}
    with closing(sqlite3.connect(folder / "edits.db")) as history:
        assert history.execute("SELECT count(*) FROM runs").fetchone() == (1,)
        assert history.execute("SELECT count(*) FROM edits").fetchone() == (5,)


@pytest.fixture(scope="module")
def unlike() -> list[tuple[int, list[str]]]:
    return side_by_side(["-m", "tests.processes.ranks", "unlike"])


def test_shared_work_comes_back_whole_and_in_order(unlike: Any) -> None:
    for _, lines in unlike:
        assert lines[:3] == ["[0, 2, 4, 6, 8]", "[]", "0"]


def test_ranks_with_different_requests_are_told_so_in_one_line(unlike: Any) -> None:
    for _, lines in unlike:
        assert lines[3] == "ProcessError: requests: rank 1 was given others than rank 0; give all ranks the same"


def test_what_fails_in_one_rank_is_raised_in_all_as_the_same_kind(unlike: Any) -> None:
    assert [lines[4] for _, lines in unlike] == ["EditFailedError: item 3 fails"] * 2


def test_ranks_that_make_different_calls_are_told_which(unlike: Any) -> None:
    assert "rank 1 is at 'that' while rank 0 is at 'this'" in unlike[0][1][5]
    assert "rank 0 is at 'this' while rank 1 is at 'that'" in unlike[1][1][5]


def test_a_rank_that_dies_ends_the_others_with_a_line(unlike: Any) -> None:
    (code, lines), (gone, _) = unlike
    assert (code, gone) == (0, 3)
    assert lines[6].startswith("ProcessError: processes: another rank has ended, or did not answer rank 0")
    assert "'the end'" in lines[6]


def test_a_rank_that_does_not_come_is_waited_for_so_long_and_no_longer() -> None:
    (_, lines), _ = side_by_side(["-m", "tests.processes.ranks", "late"])
    assert lines[0].startswith("ProcessError: processes: another rank has ended, or did not answer rank 0 within 2 sec")


def test_one_process_asks_nobody() -> None:
    assert (process_count(), is_main(), launched()) == (1, True, 1)
    assert spread("work", [3, 4], list) == [3, 4]
    assert same("work", lambda: 5) == 5
    with together("work"), alone():
        start_processes()
        assert process_count() == 1


@pytest.fixture
def as_launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    yield


def test_processes_that_do_not_know_of_each_other_are_warned(as_launched: None) -> None:
    with pytest.warns(UserWarning, match="one of 2 launched processes.*Accelerator"):
        warn_if_unaware()


@pytest.mark.parametrize("text", ["0", "-1", "soon", ""])
def test_a_waiting_time_must_be_a_number_above_0(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(WAIT, text)
    with pytest.raises(ProcessError, match=f"{WAIT}: '{text}' must be a number"):
        waiting_seconds()
