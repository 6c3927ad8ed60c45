"""Spoilt adapters: their configuration and their weights."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
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

OF_A_BASE = ("target_modules", "layers_to_transform", "renamed", "another layer beside")
"""What only a base can tell to be wrong."""


def _adapter_line(scene: Scene, draw: random.Random, name: str) -> list[str]:
    other = {"model": scene.model, "out": "out"}
    lines = [scene.evaluate(adapter="BAD"), ["merge", "BAD", *options(other)], ["restrain", "BAD", *options(other)]]
    if not name.startswith(OF_A_BASE):
        lines.append(["report", "BAD", "--out", "report.html"])
    return draw.choice(lines)


def _adapter_case(scene: Scene, draw: random.Random, kind: str, name: str, spoil: Callable[[Path], None]) -> Case:
    line = _adapter_line(scene, draw, name)

    def prepare(folder: Path) -> list[str]:
        shutil.copytree(scene.adapter, folder / "bad-adapter")
        spoil(folder / "bad-adapter")
        return placed(line, folder, BAD=folder / "bad-adapter")

    return Case(kind, f"{name} ({line[0]})", ("bad-adapter",), prepare)


def adapter_configs(scene: Scene, draw: random.Random) -> Iterator[Case]:
    wrong: dict[str, Sequence[Any]] = {
        "peft_type": (None, 7, "LORA", "NO_SUCH", [], {}),
        "restraint": (7, "sqrt", [], {}, "", True),
        "alpha": ("a", 0, 1, -2, [], {}, float("nan")),
        "restrain_on": (7, "never", [], {}, ""),
        "restrain_every": ("a", 0, -1, 1.5, [], {}),
        "max_rank": ("a", 0, -1, [], {}),
        "target_modules": (7, True, {}, [7], 1.5, "(((", [None]),
        "layers_to_transform": ("a", [99], {}, ["a"], -3),
        "edits": ("a", -1, [], {}, 1.5),
        "ranks": ("a", 7, [1], {"a": "b"}, {"a": -1}),
        "restrained": ("perhaps", 7, [], {}),
        "restraint_pattern": ("a", 7, ["a"], {"a": 7}, {"a": "sqrt"}, {"(((": "log"}),
        "max_condition_growth": ("a", 0, -1, [], {}),
    }

    def with_value(name: str, value: Any) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            file = folder / "adapter_config.json"
            content = json.loads(file.read_text()) | {name: value}
            if name == "max_condition_growth":
                content["restrain_on"] = "threshold"
            file.write_text(json.dumps(content))

        return spoil

    for name, values in wrong.items():
        for value in values:
            yield _adapter_case(scene, draw, "adapter config", f"{name} = {value!r}", with_value(name, value))
    texts = {**no_json(), "list": b"[1]", "number": b"7", "null": b"null", "text": b'"PRUNE_EDIT"', "object": b"{}"}
    for name, text in texts.items():
        yield _adapter_case(
            scene, draw, "adapter config", name, lambda f, text=text: put(f / "adapter_config.json", text)
        )
    yield _adapter_case(scene, draw, "adapter config", "none", lambda f: (f / "adapter_config.json").unlink())
    yield _adapter_case(scene, draw, "adapter config", "no folder", lambda f: shutil.rmtree(f))


def adapter_weights(scene: Scene, draw: random.Random) -> Iterator[Case]:
    def changed(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            file = folder / "adapter_model.safetensors"
            tensors = change(load_file(file))
            save_file(
                {name: one.clone().contiguous() for name, one in tensors.items()}, file, metadata={"format": "pt"}
            )

        return spoil

    first = sorted(load_file(scene.adapter / "adapter_model.safetensors"))[draw.randrange(2)]
    changes: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
        "no tensors": lambda all_: {},
        "one missing": lambda all_: {n: t for n, t in all_.items() if n != first},
        "renamed": lambda all_: {n.replace(".h.1.", ".h.9."): t for n, t in all_.items()},
        "transposed": lambda all_: {n: t.T for n, t in all_.items()},
        "one transposed": lambda all_: all_ | {first: all_[first].T},
        "flattened": lambda all_: {n: t.flatten() for n, t in all_.items()},
        "one flattened": lambda all_: all_ | {first: all_[first].flatten()},
        "wider": lambda all_: {n: torch.cat([t, t], dim=0) for n, t in all_.items()},
        "another layer beside": lambda all_: all_ | {n.replace(".h.1.", ".h.0."): t for n, t in all_.items()},
        "integers": lambda all_: {n: t.to(torch.int64) for n, t in all_.items()},
        "truth values": lambda all_: {n: t.bool() for n, t in all_.items()},
        "NaN": lambda all_: all_ | {first: torch.full_like(all_[first], float("nan"))},
        "one NaN": lambda all_: all_ | {first: with_element(all_[first], float("nan"))},
        "infinity": lambda all_: all_ | {first: with_element(all_[first], float("inf"))},
    }
    for name, change in changes.items():
        for _ in range(2):
            yield _adapter_case(scene, draw, "adapter weights", name, changed(change))
    for name, text in no_safetensors((scene.adapter / "adapter_model.safetensors").read_bytes(), draw).items():
        yield _adapter_case(
            scene, draw, "adapter weights", name, lambda f, text=text: put(f / "adapter_model.safetensors", text)
        )
    yield _adapter_case(scene, draw, "adapter weights", "none", lambda f: (f / "adapter_model.safetensors").unlink())
