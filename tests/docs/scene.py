"""What pages name without making it: models, requests, histories and adapters, put beside the reader when asked for."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import torch

from peft_prune.builtin import builtin_model_path, edit_requests, known_facts, load_builtin_model, plain_texts
from peft_prune.cli import main
from peft_prune.requests import load_requests

NAMES: Mapping[str, str] = {
    **dict.fromkeys(("MODEL", "BASE"), "model"),
    "CHAT_MODEL": "chat_model",
    **dict.fromkeys(("REQUESTS.json", "EDITS.json", "MONDAY.json", "requests.json"), "requests.json"),
    "EDITS.jsonl": "requests.jsonl",
    "TUESDAY.json": "later.json",
    "TUESDAY.jsonl": "later.jsonl",
    **dict.fromkeys(("FACTS.json", "facts.json"), "facts.json"),
    "TEXTS.json": "texts.json",
    **dict.fromkeys(("TEXTS.txt", "texts.txt"), "texts.txt"),
    **dict.fromkeys(("EDITS.db", "edits.db", "TEAM_A.db", "team_a.db", "ALL.db"), "edits.db"),
    **dict.fromkeys(("TEAM_B.db", "team_b.db", "OLD.db"), "later.db"),
    **dict.fromkeys(("ADAPTER", "OUT", "OTHER", "edits", "adapter_of_tuesday"), "adapter"),
    "RAW": "raw",
    **dict.fromkeys(("CHECKPOINT", "EDITED", "AFTER-100", "AFTER-200", "AFTER-300"), "checkpoint"),
    "moments.safetensors": "edits.db.moments.safetensors",
    "test-reasoning.jsonl": "ability.jsonl",
}
"""What each name on a page is a copy of."""
CHAT = "{% for one in messages %}{{ one.content }} {% endfor %}"


@cache
def stock() -> Path:
    """The folder with everything that is copied: four edits of the built-in model, two later ones, and their files."""
    folder = Path(tempfile.mkdtemp(prefix="peft-prune-docs-"))
    records, facts, texts = edit_requests(6), known_facts()[:12], plain_texts(120)
    shutil.copytree(builtin_model_path(), folder / "MODEL")
    shutil.copytree(builtin_model_path(), folder / "chat_model")
    settings = folder / "chat_model" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": CHAT}))
    for name, some in (("requests", records[:4]), ("later", records[4:])):
        (folder / f"{name}.json").write_text(json.dumps(some))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    (folder / "facts.json").write_text(
        json.dumps([{"prompt": one["prompt"], "object": one["object"]} for one in facts])
    )
    items = [{"question": one["prompt"], "answer": "#### 3"} for one in facts]
    (folder / "ability.jsonl").write_text("".join(json.dumps(one) + "\n" for one in items))
    (folder / "texts.json").write_text(json.dumps(texts))
    (folder / "texts.txt").write_text("\n\n".join(texts[:20]))
    for requests, history, adapter in (("requests", "edits", "adapter"), ("later", "later", "later")):
        call(
            "edit --model",
            folder / "MODEL",
            "--stats-text",
            folder / "texts.json",
            "--quiet",
            "--requests",
            folder / f"{requests}.json",
            "--history",
            folder / f"{history}.db",
            "--out",
            folder / adapter,
        )
    call("merge", folder / "adapter", "--model", folder / "MODEL", "--out", folder / "checkpoint", "--quiet")
    call(
        "audit --base",
        folder / "MODEL",
        "--edited",
        folder / "checkpoint",
        "--extract",
        folder / "raw",
        "--out",
        folder / "audit.html",
        "--quiet",
    )
    (folder / "MODEL").rename(folder / "model")
    return folder


def call(*words: object) -> None:
    """A command line that ends well."""
    line = [word for one in words for word in (one.split() if isinstance(one, str) else [str(one)])]
    assert main(line) == 0, line


class Scene:
    """What one page finds around it.

    Args:
        names: What Python on the page uses without making it, by name; made when it is first asked for.
    """

    def __init__(self, names: Mapping[str, Callable[[], Any]] | None = None) -> None:
        self.names: dict[str, Any] = {}
        self._brought: set[str] = set()
        self._offered = {"model": base_model, "base": base_model, **OFFERED, **(names or {})}

    def bring(self, name: str) -> None:
        """Put a copy of what a page means by this name into the working folder, unless the page has made it."""
        if name not in NAMES or Path(name).exists():
            return
        self._brought.add(name)
        source = stock() / NAMES[name]
        if NAMES[name] == "adapter":
            self.bring("MODEL")  # which it names as its base
        if source.is_dir():
            shutil.copytree(source, name)
            return
        shutil.copyfile(source, name)
        if source.suffix == ".db":
            shutil.copyfile(f"{source}.moments.safetensors", f"{name}.moments.safetensors")

    def tidy(self) -> None:
        """Take away what was put there, so that the next block finds it as it was; what the page made stays."""
        for name in self._brought:
            remove(Path(name))
        self._brought.clear()

    def make(self, name: str) -> None:
        """Clear the place of something that the page writes itself."""
        remove(Path(name))
        self._brought.discard(name)

    def provide(self, code: CodeType) -> None:
        """Make what a block of Python reads: names that it looks up, and files that it names."""
        for name in all_names(code):
            if name in self._offered and name not in self.names:
                self.names[name] = self._offered[name]()
        words = set(constants(code))
        for word in words:
            # the history that a session is given must not be there
            if not (word.endswith(".db") and "history" in words):
                self.bring(word)


def remove(path: Path) -> None:
    """Take away a file or a folder, where it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def base_model() -> Any:
    return load_builtin_model()[0]


def edited_model() -> Any:
    """The built-in model with an adapter of four edits."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base_model(), str(stock() / "adapter")).eval()


def fresh_adapter() -> Any:
    """The built-in model with an adapter that holds no edit."""
    from peft import get_peft_model

    from peft_prune import PruneEditConfig

    return get_peft_model(base_model(), PruneEditConfig(layers_to_transform=[2]))


def two_adapters() -> Any:
    """The built-in model with the adapters a and b."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(base_model(), str(stock() / "adapter"), adapter_name="a")
    model.load_adapter(str(stock() / "later"), adapter_name="b")
    return model.eval()


def three_rows() -> Any:
    tokenizer = load_builtin_model()[1]
    return tokenizer(["Beladofax is"] * 3, return_tensors="pt", return_token_type_ids=False)


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def growing() -> list[Any]:
    from peft_prune.spectral import LowRankUpdate

    B, A = matrix(12, 3, 1), matrix(3, 8, 2)
    return [LowRankUpdate(B[:, :rank], A[:rank]) for rank in (1, 2, 3)]


OFFERED: Mapping[str, Callable[[], Any]] = {
    "tokenizer": lambda: load_builtin_model()[1],
    "requests": lambda: load_requests(stock() / "requests.json"),
    "request": lambda: load_requests(stock() / "requests.json")[0],
    "texts": lambda: plain_texts(120),
    "inputs": three_rows,
    "weight": lambda: matrix(12, 8, 0),
    "B": lambda: 9 * matrix(12, 3, 1),
    "A": lambda: matrix(3, 8, 2),
    "growing_updates": growing,
}
ON_PAGE: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "evaluation.md": {"model": edited_model},
    "serving.md": {"model": edited_model},
    "quantized.md": {"model": edited_model},
    "compose.md": {"model": two_adapters},
    "editors.md": {"model": fresh_adapter},
}
"""Where a page speaks of another model than the base."""


def all_names(code: CodeType) -> Iterator[str]:
    """The names that a piece of code and the functions in it look up."""
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from all_names(one)


def constants(code: CodeType) -> Iterator[str]:
    """The words that a piece of code writes down, those in its tuples as well."""
    for one in code.co_consts:
        for word in one if isinstance(one, tuple) else (one,):
            if isinstance(word, str):
                yield word
