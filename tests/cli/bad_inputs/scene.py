"""Cases, and the valid inputs that they spoil."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from peft_prune.cli import main
from tests.talking import spaced_tokenizer
from tests.tiny import willing


@dataclass(frozen=True)
class Case:
    """One command line on one spoilt input.

    Args:
        kind: What is spoilt, such as "facts" or "adapter".
        name: How.
        names: The message must name one of these: a file, an option or a field.
        prepare: Writes what is needed into an empty folder and returns the arguments.
        accepted: Whether the input is in fact fine, as it is for the cases that spoil nothing.
        log: The file of a history that the command may write: that it was opened is part of it.
    """

    kind: str
    name: str
    names: tuple[str, ...]
    prepare: Callable[[Path], list[str]] = field(repr=False)
    accepted: bool = False
    log: str | None = None

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.name}"


@dataclass(frozen=True)
class Scene:
    """Valid inputs of every kind, made once."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / FILES[name]

    def edit(self, **files: Any) -> list[str]:
        fixed = {"model": self.model, "requests": self.requests, "layers": 1, "editor": "rome", "out": "out"}
        return ["edit", *options({**fixed, **files})]

    def evaluate(self, **files: Any) -> list[str]:
        return [
            "evaluate",
            *options({"model": self.model, "adapter": self.adapter, "requests": self.requests, **files}),
        ]


FILES = {
    "model": "model",
    "requests": "requests.json",
    "flat": "flat.jsonl",
    "table": "table.csv",
    "facts": "facts.json",
    "texts": "texts.json",
    "lines": "lines.txt",
    "items": "items.jsonl",
    "adapter": "adapter",
    "history": "edits.db",
    "moments": "edits.db.moments.safetensors",
}
WORDS = "ant eat tan nest oats sea note tone seat east soot toast stone tea net ten son too nose sane".split()


def make_scene(folder: Path) -> Scene:
    """A model of a few thousand parameters, what goes with it, and an adapter and a history of two edits in it."""
    scene = Scene(folder)
    willing("gpt2").save_pretrained(scene.model)
    spaced_tokenizer().save_pretrained(scene.model)
    requests = [request(subject) for subject in ("sane ant", "oats tea")]
    write(scene.requests, requests)
    flat = [{**one["requested_rewrite"], "target_new": "ten", "target_true": "net"} for one in requests]
    scene.flat.write_text("".join(json.dumps(one) + "\n" for one in flat))
    scene.table.write_text("prompt,subject,target_new\n" + "".join(f"note sea {{}},{s},ten\n" for s in ("ant", "tea")))
    texts = [" ".join(WORDS[(7 * i + 3 * j) % 20] for j in range(12)) for i in range(40)]
    write(scene.texts, texts)
    scene.lines.write_text("\n".join(texts))
    write(scene.facts, [{"prompt": " ".join(one.split()[:5]), "object": one.split()[5]} for one in texts[:8]])
    scene.items.write_text("".join(json.dumps({"prompt": one[:9], "answer": "ten"}) + "\n" for one in texts[:4]))
    more = {"stats_text": scene.texts, "history": scene.history, "out": scene.adapter, "restraint": "none"}
    code = main([*scene.edit(**more), "--json", *settings()])
    assert code == 0
    return scene


GONE = object()
"""In place of a value: the field is left out."""


def no_safetensors(data: bytes, draw: random.Random) -> dict[str, bytes]:
    """Files that are no whole safetensors file, made from one that is."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]

    def with_header(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text + body

    huge = {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
    return {
        "empty": b"",
        "short": data[:5],
        "cut in the header": data[: 8 + length // 2],
        "cut in the data": data[: draw.randrange(8 + length, len(data))],
        "something behind": data + b"more",
        "text": b"no tensors at all",
        "noise": draw.randbytes(len(data) % 5000 + 100),
        "header of exabytes": struct.pack("<Q", 2**60) + data[8:],
        "tensor of terabytes": with_header(json.dumps(huge).encode()),
        "negative shape": with_header(header.replace(b'"shape":[', b'"shape":[-', 1)),
        "unknown dtype": with_header(header.replace(b"F32", b"F99")),
        "a list for a header": with_header(b"[]"),
        "deep header": with_header(b'{"a":' * 5000 + b"1" + b"}" * 5000),
        "pickled": b"\x80\x02}q\x00.",
    }


def request(subject: str) -> dict[str, Any]:
    rewrite = {"prompt": "note sea {}", "subject": subject, "relation_id": "P1"}
    targets = {"target_new": {"str": "ten"}, "target_true": {"str": "net"}}
    prompts = {"paraphrase_prompts": [f"tan {subject} eat"], "neighborhood_prompts": ["note stone eat sea"]}
    return {"case_id": 1, "requested_rewrite": {**rewrite, **targets}, **prompts}


def settings() -> list[str]:
    """With which edits take in the tiny model, and soon."""
    values = ("v_num_grad_steps=25", "clamp_norm_factor=20", "context_lengths=[[4, 3]]")
    return [part for one in values for part in ("--set", one)]


def options(values: dict[str, Any]) -> list[str]:
    """Options of a command line by their names."""
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def placed(line: Sequence[str], folder: Path, **files: Path) -> list[str]:
    """The line with its outputs in the folder, and what stands for a file replaced by it."""
    outputs = ("out", "report.html", "audit.html", "plot.png")
    return [str(folder / part) if part in outputs else str(files.get(part, part)) for part in line]


def with_value_at(content: Any, place: Sequence[Any], value: Any) -> Any:
    """A copy of a JSON document with another value at a place, or without it."""
    copy = json.loads(json.dumps(content))
    inner = copy
    for step in place[:-1]:
        inner = inner[step]
    if value is GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return copy


def with_element(tensor: torch.Tensor, value: float) -> torch.Tensor:
    copy = tensor.clone()
    copy.view(-1)[0] = value
    return copy


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def no_json() -> dict[str, bytes]:
    return {
        "empty": b"",
        "blank": b"  \n",
        "half": b'[{"prompt": "note',
        "no text": b"\xff\xfe\x00\x01",
        "binary": bytes(range(256)),
        "deep": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "two documents": b"[] []",
        "empty list": b"[]",
        "word": b"NaN",
    }
