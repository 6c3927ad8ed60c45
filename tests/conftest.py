"""What every test may use: tiny models, and the shared data where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# tests never reach for a network; the libraries read this once, when they are imported
os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_prune.real import is_installed, real_model

from .talking import bos_tokenizer, outspoken, spaced_tokenizer
from .tiny import tiny_gpt2, tiny_llama


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is kept for later stays out of the user's own folder."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["PEFT_PRUNE_CACHE"] = str(folder)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``real`` are skipped where the real model's package is not installed; they never download it."""
    if not is_installed("smollm2"):
        skip = pytest.mark.skip(reason=f"needs the real model: {real_model('smollm2').install}")
        for item in items:
            if item.get_closest_marker("real") is not None:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the public development data; tests that need it are skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("PEFT_PRUNE_SHARED", default))
    if not (folder / "models").is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder


@pytest.fixture(params=["gpt2", "llama"])
def tiny_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return {"gpt2": tiny_gpt2, "llama": tiny_llama}[request.param]()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model with its tokenizer: GPT-2 without a BOS, Llama with one."""
    return outspoken(request.param), spaced_tokenizer() if request.param == "gpt2" else bos_tokenizer()
