"""A model with its tokenizer: GPT-2 without a BOS, Llama with one."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .tiny import bos_tokenizer, outspoken, spaced_tokenizer


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return outspoken(request.param), spaced_tokenizer() if request.param == "gpt2" else bos_tokenizer()
