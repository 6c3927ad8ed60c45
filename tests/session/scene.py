"""A tiny model, an editor that makes edits take in it, and sessions on it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from peft import get_peft_model

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.editors import ROME, Editor, SecondMoments, collect_second_moments
from peft_prune.session import EditSession
from tests.editors.test_rome import EASY, TEXTS
from tests.talking import spaced_tokenizer
from tests.tiny import willing

REQUESTS = [
    EditRequest("note sea {}", subject, target)
    for subject, target in (("sane ant", "ten"), ("tone seat", "ten"), ("oats", "ten"), ("tea", "ten"), ("nest", "sea"))
]
MODULE = "transformer.h.1.mlp.c_proj"


@cache
def moments() -> SecondMoments:
    return collect_second_moments(willing("gpt2"), spaced_tokenizer(), TEXTS, [MODULE], progress=False)


def adapted(**config: Any) -> Any:
    """The model with a fresh adapter on the edited layer."""
    options = {"layers_to_transform": [1], "restraint": "none", **config}
    return get_peft_model(willing("gpt2"), PruneEditConfig(**options)).eval()


def session(
    history: Path | None = None, editor: Editor | None = None, model: Any = None, **options: Any
) -> EditSession:
    return EditSession(
        adapted() if model is None else model,
        spaced_tokenizer(),
        ROME(EASY) if editor is None else editor,
        statistics=moments(),
        history=history,
        **options,
    )


def resumed(history: Path, editor: Editor | None = None, **options: Any) -> EditSession:
    return EditSession.resume(history, willing("gpt2"), spaced_tokenizer(), editor, statistics=moments(), **options)
