"""An adapter on a tiny model whose restraint acts, and texts that the model can read."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from peft import get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.consolidation import ConsolidationSettings, Material
from peft_prune.consolidation.passages import edit_passages, text_passages
from peft_prune.session import EditSession
from peft_prune.spectral import LowRankUpdate
from tests.session.scene import MODULE, REQUESTS, resumed, session
from tests.talking import spaced_tokenizer
from tests.tiny import random_update, willing

TEXTS = [
    "ten sea note tone seat east soot toast",
    "stone tea net ten son too nose sane ant eat",
    "eat tan nest oats sea seat",
    "note tone seat soot stone",
    "tea net ant east oats",
    "toast too nose son ten tan",
]
GENTLE = ConsolidationSettings(
    learning_rate=0.02,
    beta=0.2,
    neighbor_beta=0.2,
    steps=60,
    text_length=8,
    texts_per_step=4,
    contexts=2,
    look_every=20,
    bfloat16=False,
)
"""Enough for the five edits of the session's scene to be reached, in a second; the same on every machine."""
RESTRAINED = {"restraint": "log", "alpha": 1.5, "restrain_on": "merge"}


def fresh(history: Path | None = None, **config: Any) -> EditSession:
    """A session without edits whose restraint acts."""
    values = {**RESTRAINED, **config}
    tuned = get_peft_model(willing("gpt2"), PruneEditConfig(layers_to_transform=[1], **values)).eval()
    return session(history, model=tuned)


@cache
def _made() -> bytes:
    """A history with five edits, made once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        with fresh(Path(folder, "edits.db")) as own:
            own.edit(REQUESTS)
        return Path(folder, "edits.db").read_bytes()


def edited(history: Path) -> EditSession:
    """A session with five edits, some of which the restraint takes away again."""
    history.write_bytes(_made())
    return resumed(history)


def layer_of(own: Any) -> Any:
    return dict(own.model.edited_layers())[MODULE]


def effective(own: Any) -> LowRankUpdate:
    return layer_of(own).effective_update("default")


def material(contexts: int = 2) -> Material:
    tokenizer = spaced_tokenizer()
    pieces = text_passages(tokenizer, TEXTS, 8)
    return Material(edit_passages(tokenizer, REQUESTS, TEXTS, contexts, 0), pieces[2:], pieces[:2])


def adapted_layers(kind: str = "gpt2", layers: tuple[int, ...] = (1, 2)) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A model with an adapter on two layers, these, and an update for each that the adapter does not hold."""
    model = get_peft_model(willing(kind), PruneEditConfig(layers_to_transform=list(layers))).eval()
    found = dict(model.base_model.edited_layers())
    updates = {
        name: random_update((layer.out_features, layer.in_features), rank=3, scale=0.5, seed=number)
        for number, (name, layer) in enumerate(found.items())
    }
    return model, found, updates
