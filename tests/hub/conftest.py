from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from peft import get_peft_model
from safetensors.torch import save_file

from peft_prune import PruneEditConfig
from tests.tiny import random_update, tiny_llama

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from tests.hub.scene import Loopback, loopback

MODULE = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="session")
def hub(place: Path) -> Iterator[Loopback]:
    with loopback(place) as found:
        yield found


@pytest.fixture(scope="session")
def base(place: Path) -> Path:
    """A base with its tokenizer."""
    from tests.talking import spaced_tokenizer

    tiny_llama().save_pretrained(place / "tiny-base")
    spaced_tokenizer().save_pretrained(place / "tiny-base")
    return place / "tiny-base"


@pytest.fixture(scope="session")
def adapter(place: Path, base: Path) -> Path:
    """Five edits of it, as its session's owner keeps them: with a history and notes beside them."""
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), PruneEditConfig(task_type="CAUSAL_LM", restraint="none")
    )
    layer = dict(model.base_model.edited_layers())[MODULE]
    for seed in range(5):
        model.base_model.add_edits({MODULE: random_update((layer.out_features, layer.in_features), seed=seed)})
    save_file({"keys": layer.effective_update("default").A.contiguous()}, place / "keys.safetensors")
    model.save_pretrained(place / "adapter")
    (place / "adapter" / "edits.db").write_bytes(b"a history with facts")
    (place / "adapter" / "notes.txt").write_text("facts in the clear")
    return place / "adapter"
