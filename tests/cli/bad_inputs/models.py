"""Spoilt statistics, models, checkpoints and experiments."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .scene import (
    Case,
    Scene,
    no_json,
    no_safetensors,
    options,
    placed,
    put,
    with_element,
)


def statistics(scene: Scene, draw: random.Random) -> Iterator[Case]:
    tensors = load_file(scene.moments)
    (name,) = tensors
    good = {"tokens": "480", "base": "", "format": "pt", "kind": "second_moments"}
    size = len(tensors[name])

    def case(what: str, content: dict[str, torch.Tensor] | bytes, metadata: dict[str, str] | None = None) -> Case:
        def prepare(folder: Path) -> list[str]:
            file = folder / "bad.safetensors"
            if isinstance(content, bytes):
                file.write_bytes(content)
            else:
                save_file(content, file, metadata=good if metadata is None else metadata)
            return placed(scene.edit(stats=file), folder)

        return Case("statistics", what, ("bad.safetensors", name), prepare)

    moment = tensors[name]
    matrices = {
        "zeros": torch.zeros(size, size),
        "NaN": torch.full((size, size), float("nan")),
        "one NaN": with_element(moment, float("nan")),
        "infinity": with_element(moment, float("inf")),
        "asymmetric": moment + torch.triu(torch.ones(size, size), 1),
        "negative diagonal": moment - 2 * torch.diag(moment.diagonal()),
        "not semidefinite": moment.diagonal().diag() + 9 * moment.diagonal().max() * (1 - torch.eye(size)),
        "negated": -moment,
        "vector": moment[0].clone(),
        "cube": moment[None].clone(),
        "oblong": moment[: size // 2].clone(),
        "empty": torch.zeros(0, 0),
        "scalar": torch.tensor(1.0),
        "half precision": moment.half(),
        "double precision": moment.double(),
        "integers": moment.long(),
        "truth values": moment.bool(),
        "another width": torch.eye(size + 1),
    }
    for what, matrix in matrices.items():
        yield case(what, {name: matrix})
    yield case("another layer", {"transformer.h.9.mlp.c_proj": moment})
    yield case("no tensors", {})
    for key in ("tokens", "kind"):
        yield case(f"no {key}", tensors, {k: v for k, v in good.items() if k != key})
    for value in ("", "0", "-1", "many", "1.5", "nan", "9" * 60, "٣"):
        yield case(f"tokens = {value[:8]}", tensors, good | {"tokens": value})
    yield case("another base", tensors, good | {"base": "0" * 16 + ":" + "AAAA" * 64})
    yield case("kind = mend", tensors, good | {"kind": "mend"})
    for what, text in no_safetensors(scene.moments.read_bytes(), draw).items():
        yield case(what, text)


def models(scene: Scene, draw: random.Random) -> Iterator[Case]:
    def case(name: str, spoil: Callable[[Path], None]) -> Case:
        line = draw.choice(
            (
                scene.evaluate(model="BAD"),
                ["merge", str(scene.adapter), "--model", "BAD", "--out", "out"],
                [*scene.edit(model="BAD"), "--set", "mom2_adjustment=false"],
            )
        )

        def prepare(folder: Path) -> list[str]:
            shutil.copytree(scene.model, folder / "bad-model")
            spoil(folder / "bad-model")
            return placed(line, folder, BAD=folder / "bad-model")

        return Case("model", f"{name} ({line[0]})", ("bad-model",), prepare)

    for name, text in no_json().items():
        yield case(f"config {name}", lambda folder, text=text: put(folder / "config.json", text))
    for value in (7, [], "gpt9", None, {}):
        yield case(f"model_type = {value!r}", _configured("model_type", value))
    for name in ("n_embd", "n_layer", "n_head", "vocab_size"):
        for value in ("a", -1, 0, None, [], 1.5):
            yield case(f"{name} = {value!r}", _configured(name, value))
    for name, value in (("n_embd", 32), ("vocab_size", 70), ("n_layer", 5), ("n_head", 3)):
        yield case(f"{name} = {value!r}, another than the weights'", _configured(name, value))
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        yield case(f"no {file}", lambda folder, file=file: (folder / file).unlink())
    for name, text in no_safetensors((scene.model / "model.safetensors").read_bytes(), draw).items():
        yield case(f"weights {name}", lambda folder, text=text: put(folder / "model.safetensors", text))
    for name, text in {**no_json(), "no model": b'{"version": "1.0"}', "number": b"7"}.items():
        yield case(f"tokenizer {name}", lambda folder, text=text: put(folder / "tokenizer.json", text))
    yield case("no folder", lambda folder: shutil.rmtree(folder))
    yield case("a file", lambda folder: (shutil.rmtree(folder), folder.write_text("model")))


def _configured(name: str, value: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))

    return spoil


def checkpoints(scene: Scene, draw: random.Random) -> Iterator[Case]:
    weights = (scene.model / "model.safetensors").read_bytes()

    def case(name: str, spoil: Callable[[Path], None]) -> Case:
        def prepare(folder: Path) -> list[str]:
            shutil.copytree(scene.model, folder / "bad-model")
            spoil(folder / "bad-model")
            pair = {"base": scene.model, "edited": folder / "bad-model"}
            if draw_base:
                pair = {"base": folder / "bad-model", "edited": scene.model}
            return placed(["audit", *options({**pair, "out": "audit.html"})], folder)

        draw_base = draw.random() < 0.5
        return Case("checkpoint", name, ("bad-model", "checkpoint"), prepare)

    for name, text in no_safetensors(weights, draw).items():
        yield case(name, lambda folder, text=text: put(folder / "model.safetensors", text))
    for name, text in {"half": b"{", "list": b"[]", "number": b"7", "deep": b"[" * 100_000}.items():
        yield case(f"config {name}", lambda folder, text=text: put(folder / "config.json", text))
    for name, text in {
        "half": b"{",
        "list": b"[]",
        "no map": b"{}",
        "map of numbers": b'{"weight_map": {"a": 7}}',
        "map elsewhere": b'{"weight_map": {"a": "../../etc/passwd"}}',
        "missing shard": b'{"weight_map": {"a": "b.safetensors"}}',
        "deep": b"[" * 100_000,
    }.items():
        yield case(
            f"index {name}",
            lambda folder, text=text: (
                (folder / "model.safetensors").unlink(),
                put(folder / "model.safetensors.index.json", text),
            ),
        )
    yield case("no weights", lambda folder: (folder / "model.safetensors").unlink())


def experiments(scene: Scene, draw: random.Random) -> Iterator[Case]:
    def case(name: str, spoil: Callable[[Path], None]) -> Case:
        def prepare(folder: Path) -> list[str]:
            (folder / "bad-run").mkdir()
            spoil(folder / "bad-run" / "measurements.sqlite")
            given = {"model": scene.model, "requests": scene.requests, "edits": 1, "out": "out"}
            return placed(["experiment", *options(given | {"against": folder / "bad-run"})], folder)

        return Case("experiment", name, ("bad-run",), prepare)

    def meta(value: str) -> Callable[[Path], None]:
        def spoil(path: Path) -> None:
            connection = sqlite3.connect(path, isolation_level=None)
            connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            for key in ("model", "editor", "hyperparameters", "marks", "variants", "schedules", "seeds", "batch_size"):
                connection.execute("INSERT INTO meta VALUES (?, ?)", (key, value))
            connection.close()

        return spoil

    for name, text in {"empty": b"", "text": b"no database", "noise": draw.randbytes(5000)}.items():
        yield case(name, lambda path, text=text: put(path, text))
    for value in ("{", "7", '"a"', "[1]", "null", "[" * 3000):
        yield case(f"meta = {value[:10]}", meta(value))
