"""Where second moments are solved with, and how what is kept lies."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch

from peft_prune.editors import SecondMoments, Solving
from peft_prune.editors.closed_form import KeySystem, least_squares_rows, moment_inverse, null_space_inverse
from peft_prune.editors.pages import mapped, rest
from peft_prune.session.facts import moments_digest
from tests.editors.test_closed_form import WIDTH, random_keys, random_moment, relative_error
from tests.session.scene import MODULE, REQUESTS, adapted, session


@pytest.mark.parametrize("shrinkage", [0.0, 1e-2])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("mapped", [False, True])
def test_kept_on_disk_or_in_half_the_room_an_inverse_solves_the_same(
    tmp_path: Path, shrinkage: float, dtype: str, mapped: bool
) -> None:
    moment, keys = random_moment(spread=2.0).float(), random_keys(3)
    solving = Solving(dtype=dtype, folder=tmp_path if mapped else None)
    found = moment_inverse(moment, 2.0, shrinkage, solving).apply(keys)
    ridge = shrinkage * float(moment.double().diagonal().mean()) * torch.eye(WIDTH, dtype=torch.float64)
    expected = torch.linalg.solve(2.0 * (moment.double() + ridge), keys)
    assert relative_error(found, expected) < (1e-4 if dtype == "float32" else 1e-9)
    assert os.listdir(tmp_path) == []  # the file has no name, and so is gone with the process


def test_an_inverse_that_float32_cannot_hold_is_kept_in_float64_with_a_warning() -> None:
    moment = random_moment(spread=9.0)
    with pytest.warns(UserWarning, match="kept in float64: in float32 it would be off by"):
        found = moment_inverse(moment, 1.0, 0.0, Solving(dtype="float32"))
    keys = moment @ random_keys(2)
    assert relative_error(found.apply(keys), random_keys(2)) < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moment_inverse(random_moment(spread=2.0), 1.0, 0.0, Solving(dtype="float32"))


def test_what_takes_the_memory_of_an_inverse_leaves_it_usable() -> None:
    moment, keys = random_moment(), random_keys(2, 5)
    inverse = moment_inverse(moment, 3.0)
    KeySystem(inverse).hold(random_keys(WIDTH)).applied(keys)
    assert relative_error(inverse.apply(keys), torch.linalg.solve(3.0 * moment, keys)) < 1e-8


def test_a_projection_is_kept_on_disk_as_well(tmp_path: Path) -> None:
    moment, keys = random_moment(), random_keys(3)
    for threshold in (3e-3, 3e-1):
        expected = least_squares_rows(KeySystem(null_space_inverse(moment, threshold, 0.7)), keys)
        mapped = null_space_inverse(moment, threshold, 0.7, Solving(folder=tmp_path))
        assert relative_error(least_squares_rows(KeySystem(mapped), keys), expected) < 1e-12


def test_a_session_solves_where_it_is_told_and_edits_the_same(tmp_path: Path) -> None:
    factors = []
    for solving in (None, Solving("cpu", "float64", tmp_path)):
        model = adapted()
        with session(model=model, solving=solving, monitor=False) as opened:
            opened.edit(REQUESTS[:2])
            assert solving is None or opened.prepared.solving == solving
        factors.append(dict(model.edited_layers())[MODULE].effective_update("default").dense())
    assert torch.equal(*factors)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "warp:9"}, "solve_device: 'warp:9' is no device that torch has here"),
        ({"device": "cuda:99"}, "solve_device: 'cuda:99' is no device"),
        ({"dtype": "float16"}, "solve_dtype: 'float16' is not one of float64, float32"),
        ({"folder": "/nowhere/at/all"}, "solve_folder: '/nowhere/at/all' is no folder"),
    ],
)
def test_what_cannot_be_used_is_named(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Solving(**given)


@pytest.mark.parametrize("threshold", [3e-3, 3e-1])
def test_eigenvectors_of_float32_give_the_projection_of_float64(threshold: float) -> None:
    moment, keys = random_moment(spread=3.0), random_keys(3)
    values, vectors = torch.linalg.eigh(moment)
    low = vectors[:, values < threshold]
    assert 0 < low.shape[1] < WIDTH
    found = null_space_inverse(moment.float(), threshold, 0.7, Solving(dtype="float32")).apply(keys)
    assert found.dtype is torch.float64
    assert relative_error(found, low @ (low.T @ keys) / 0.7) < 1e-4


def test_eigenvectors_that_float32_would_mix_at_the_threshold_are_found_in_float64() -> None:
    moment, keys = random_moment(spread=9.0), random_keys(2)
    values, vectors = torch.linalg.eigh(moment)
    threshold = float(values[WIDTH // 2 : WIDTH // 2 + 2].mean())
    moment = moment + 1e9 * threshold * torch.outer(vectors[:, -1], vectors[:, -1])
    low = vectors[:, : WIDTH // 2 + 1]
    with pytest.warns(UserWarning, match="found in float64: float32 would not tell eigenvalues near the threshold"):
        found = null_space_inverse(moment, threshold, 0.7, Solving(dtype="float32")).apply(keys)
    assert relative_error(found, low @ (low.T @ keys) / 0.7) < 1e-4


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux alone tells what is resident")
def test_what_is_mapped_gives_its_memory_back_and_keeps_its_values(tmp_path: Path) -> None:
    held, plain = mapped((1024, 1024), torch.float64, tmp_path), torch.randn(1024, 1024)
    held.normal_()
    values, others, before = held.sum(), plain.clone(), resident()
    rest(held)
    assert resident() <= before - 0.9 * held.nbytes
    assert torch.equal(held.sum(), values)
    rest(plain)
    assert torch.equal(plain, others)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux alone tells what is resident")
def test_moments_from_a_file_are_not_in_memory_for_having_been_looked_at(tmp_path: Path) -> None:
    width, file = 1024, tmp_path / "moments.safetensors"
    moment = torch.eye(width) + torch.ones(width, width)
    SecondMoments({name: moment.clone() for name in "abc"}, 10).save(file)
    moments = SecondMoments.load(file).moments
    assert resident_of(file) < 0.1 * moment.nbytes
    digest = moments_digest(moments)  # what a history is told from another by
    assert resident_of(file) < 0.1 * moment.nbytes
    assert digest["b"][0] == 2 * width and all(torch.equal(one, moment) for one in moments.values())
    assert resident_of(file) >= 3 * moment.nbytes


def resident_of(file: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    found, own = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            own = bool(values) and values[-1] == str(file)
        elif own and name == "Rss:":
            found += 1024 * int(values[0])
    return found


def resident() -> int:
    """Bytes of this process in memory."""
    return os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[1])
