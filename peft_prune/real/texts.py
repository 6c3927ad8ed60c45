"""Texts that the model writes itself, where none of another origin are at hand."""

from __future__ import annotations

from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..models.inference import input_device, undisturbed

LENGTH = 128
"""Tokens of a text."""
TOGETHER = 20
"""Texts that are written together."""
OPENINGS = (
    "The",
    "In",
    "A",
    "It",
    "When",
    "How",
    "We",
    "He",
    "She",
    "They",
    "This",
    "For",
    "There",
    "What",
    "If",
    "My",
)


def own_texts(
    model: Any, tokenizer: PreTrainedTokenizerBase, tokens: int, *, seed: int = 0, progress: bool = True
) -> list[str]:
    """Texts of together about so many tokens, drawn from the model by its own probabilities.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        tokens: Number of tokens.
        seed: Of the drawing; torch's own random state stays as it is.
        progress: Show a bar.
    """
    found: list[str] = []
    with undisturbed(model), torch.random.fork_rng(), tqdm(total=tokens, desc="Own texts", disable=not progress) as bar:
        torch.manual_seed(seed)
        while (done := len(found) * LENGTH) < tokens:
            openings = [OPENINGS[(len(found) + place) % len(OPENINGS)] for place in range(TOGETHER)]
            first = torch.tensor([tokenizer(opening)["input_ids"][-1:] for opening in openings])
            first = first.to(input_device(model))
            options: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 0.95, "max_new_tokens": LENGTH - 1}
            mask = torch.ones_like(first)
            written = model.generate(first, attention_mask=mask, pad_token_id=tokenizer.eos_token_id, **options)
            found += [str(text) for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
            bar.update(len(found) * LENGTH - done)
    return [text for text in found if text.strip()]
