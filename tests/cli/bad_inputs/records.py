"""Spoilt files of records: requests, facts, texts and items of general abilities."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .scene import (
    GONE,
    Case,
    Scene,
    no_json,
    options,
    placed,
    with_value_at,
)

WRONG = (None, True, 7, 1.5, [], {}, [1], {"a": 1}, "", " \t")
"""Values that are no text: each is wrong wherever a field must hold one."""


def records(scene: Scene, draw: random.Random) -> Iterator[Case]:
    whole = json.loads(scene.requests.read_text())
    places = [("requested_rewrite", name) for name in ("prompt", "subject")]
    places += [("requested_rewrite", "target_new", "str"), ("requested_rewrite",)]
    for place in places:
        for value in WRONG:
            spoilt = with_value_at(whole, (draw.randrange(len(whole)), *place), value)
            yield _requests(scene, draw, f"{'.'.join(place)} = {value!r}", spoilt)
        yield _requests(scene, draw, f"{'.'.join(place)} missing", with_value_at(whole, (1, *place), GONE))
    for name in ("paraphrase_prompts", "neighborhood_prompts"):
        for value in (7, {"a": 1}, [7], [True], [""], [["text", 7]]):
            yield _requests(scene, draw, f"{name} = {value!r}", with_value_at(whole, (0, name), value))
    for value in ("no place for it", "{} and {}", "{0}", "{subject}"):
        yield _requests(
            scene, draw, f"prompt = {value!r}", with_value_at(whole, (0, "requested_rewrite", "prompt"), value)
        )
    for value in WRONG[:-2]:
        yield _requests(scene, draw, f"record = {value!r}", [whole[0], value])
        if value != []:
            yield _requests(scene, draw, f"document = {value!r}", value)
    for name, text in no_json().items():
        yield _text_case(scene, draw, "requests", name, "bad.json", text)
        yield _text_case(scene, draw, "requests", f"{name} in a line", "bad.jsonl", b"\n" + text)
    tables = {
        "unknown column": b"prompt,subject,object\nnote {},ant,ten\n",
        "column twice": b"prompt,prompt,subject,target_new\nnote {},a {},ant,ten\n",
        "cell too many": b"prompt,subject,target_new\nnote {},ant,ten,sea\n",
        "cell too few": b"prompt,subject,target_new\nnote {},ant\n",
        "no rows": b"prompt,subject,target_new\n",
        "no prompt": b"subject,target_new\nant,ten\n",
        "open quote": b'prompt,subject,target_new\n"note {},ant,ten\n',
        "huge cell": b"prompt,subject,target_new\nnote {}," + b"a" * 200_000 + b",ten\n",
        "nul": b"prompt,subject,target_new\nno\0te {},,ten\n",
    }
    for name, text in tables.items():
        yield _text_case(scene, draw, "requests", name, "bad.csv", text)


def documents(scene: Scene, draw: random.Random) -> Iterator[Case]:
    facts = json.loads(scene.facts.read_text())
    for name in ("prompt", "object"):
        for value in (*WRONG, GONE):
            spoilt = with_value_at(facts, (draw.randrange(len(facts)), name), value)
            yield _json_case(scene, draw, "facts", f"{name} = {value!r}", spoilt)
    texts = json.loads(scene.texts.read_text())
    for value in WRONG[:-2]:
        yield _json_case(scene, draw, "facts", f"record = {value!r}", [facts[0], value])
        yield _json_case(scene, draw, "texts", f"text = {value!r}", with_value_at(texts, (3,), value))
        if value != []:
            yield _json_case(scene, draw, "facts", f"document = {value!r}", value)
            yield _json_case(scene, draw, "texts", f"document = {value!r}", value)
    for name, text in no_json().items():
        yield _text_case(scene, draw, "facts", name, "bad.json", text)
        yield _text_case(scene, draw, "texts", name, "bad.json", text)
    for name, text in {"empty": b"", "blank": b" \n\n", "no text": b"\xff\xfe\x00"}.items():
        yield _text_case(scene, draw, "texts", f"{name} lines", "bad.txt", text)


def abilities(scene: Scene, draw: random.Random) -> Iterator[Case]:
    forms = (
        {"question": "ant?", "answer": "so #### 3"},
        {"dialogue": "ant: tea", "summary": "tea"},
        {"question": "ant?", "answer": ["tea"]},
        {"prompt": "ant", "answer": "tea"},
    )
    for form in forms:
        for name in form:
            for value in (None, 7, {}, "", [7], [""]):
                yield _json_case(scene, draw, "abilities", f"{form}: {name} = {value!r}", [form, {**form, name: value}])
        yield _json_case(scene, draw, "abilities", f"{form}: a list", [form, list(form)])
    for name, text in {
        **no_json(),
        "no form": b'[{"a": 1}]',
        "no number": b'[{"question": "a", "answer": "three"}]',
    }.items():
        yield _text_case(scene, draw, "abilities", name, "bad.json", text)
    for name, text in {
        "label": b"sentence1\tsentence2\tlabel\na\tb\tmaybe\n",
        "cell": b"sentence1\tsentence2\tlabel\na\tb\n",
        "no rows": b"sentence1\tsentence2\tlabel\n",
    }.items():
        yield _text_case(scene, draw, "abilities", name, "bad.tsv", text)


def _requests(scene: Scene, draw: random.Random, name: str, content: Any) -> Case:
    return _json_case(scene, draw, "requests", name, content)


def _json_case(scene: Scene, draw: random.Random, kind: str, name: str, content: Any) -> Case:
    return _text_case(scene, draw, kind, name, "bad.json", json.dumps(content).encode())


def _text_case(scene: Scene, draw: random.Random, kind: str, name: str, file: str, text: bytes) -> Case:
    readers = {
        "requests": (
            scene.edit(requests="BAD"),
            scene.evaluate(requests="BAD"),
            ["resume", str(scene.history), *options({"model": scene.model, "requests": "BAD", "out": "out"})],
            ["locate", *options({"model": scene.model, "requests": "BAD", "plot": "plot.png"})],
            ["experiment", *options({"model": scene.model, "requests": "BAD", "edits": 1, "out": "out"})],
        ),
        "facts": (
            scene.edit(watch_facts="BAD"),
            scene.evaluate(facts="BAD"),
            ["tune", str(scene.history), *options({"model": scene.model, "facts": "BAD", "out": "out"})],
            ["report", str(scene.history), *options({"model": scene.model, "facts": "BAD", "out": "report.html"})],
        ),
        "texts": (scene.edit(watch_text="BAD"), scene.edit(stats_text="BAD"), scene.evaluate(text="BAD")),
        "abilities": (scene.evaluate(abilities="BAD"),),
    }
    line = draw.choice(readers[kind])

    def prepare(folder: Path) -> list[str]:
        (folder / file).write_bytes(text)
        return placed(line, folder, BAD=folder / file)

    return Case(kind, f"{name} ({line[0]})", (file,), prepare)
