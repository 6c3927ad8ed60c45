"""Perplexity of plain text."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InvalidRequestError
from ..models.inference import Progress, max_positions
from ..models.joining import joined
from ..models.tokenization import Continuation, text_ids
from ..requests import read_records, read_text
from .bootstrap import Draws
from .bootstrap import perplexity as perplexity_draws
from .estimates import Mean
from .token_probabilities import token_log_probabilities

DEFAULT_WINDOW = 1024


def load_texts(path: str | Path) -> list[str]:
    """Read texts from a JSON list (or JSONL file), or from a ``.txt`` file with one text per line.

    A JSON record is a string, an object with ``text``, or a fact with ``prompt`` and ``object``, read as one sentence.

    Raises:
        InvalidRequestError: The file is missing, unreadable, empty, or a record is malformed (which, and which field).
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        return _lines(path)
    texts = []
    for index, record in enumerate(read_records(path)):
        try:
            texts.append(_text(record))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path}: record {index}: {error}") from None
    return texts


def perplexity(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> float:
    """exp(total negative log-likelihood / total predicted tokens) over all texts.

    Every token of a text but its first is predicted exactly once (with a tokenizer that puts a BOS in front, the first
    as well). A text longer than the window is cut, each window beginning with the last token of the one before. No
    padding and no end-of-text token is counted. A model that has collapsed can give infinity, or NaN.

    Args:
        model: A causal language model of transformers, or a PEFT model of one.
        tokenizer: Its tokenizer.
        texts: Texts, each read on its own.
        max_length: Window in tokens; by default 1,024, or fewer where the model allows fewer.
        batch_size: Most windows in one batch.
        progress: Called with the number of windows done and their total.

    Raises:
        InvalidRequestError: No text has two tokens.
        ValueError: ``max_length`` is below 2 or beyond the model's positions.
    """
    losses = text_losses(model, tokenizer, texts, max_length=max_length, batch_size=batch_size, progress=progress)
    return perplexity_of(losses)


def text_losses(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[tuple[float, int]]:
    """Negative log-likelihood of each text, in nats, and the number of its predicted tokens; see :func:`perplexity`.

    A text of one token has none, (0.0, 0).
    """
    window = _window(model, max_length)
    parts = [_windows(ids, window) for ids in text_ids(tokenizer, texts)]
    if not any(parts):
        raise InvalidRequestError(f"texts: none of {len(texts)} texts has two tokens, so there is nothing to predict")
    scores = iter(
        token_log_probabilities(
            model, [part for own in parts for part in own], batch_size=batch_size, progress=progress
        )
    )
    found = []
    for own in parts:
        of_text = [next(scores) for _ in own]
        found.append((-sum(one.double().sum().item() for one in of_text), sum(len(one) for one in of_text)))
    return found


def perplexity_of(losses: Sequence[tuple[float, int]]) -> float:
    """exp(total loss / total tokens) of what :func:`text_losses` gives."""
    loss = sum(own for own, _ in losses) / sum(tokens for _, tokens in losses)
    # a model that has collapsed may pass the largest float
    return math.inf if loss > math.log(sys.float_info.max) else math.exp(loss)


def perplexity_figure(losses: Sequence[tuple[float, int]]) -> Mean:
    """:func:`perplexity_of` with the number of texts and the percentile bootstrap over them.

    Texts without a predicted token have no part in it.
    """
    draws = Draws.of([one for one in losses if one[1] > 0], perplexity_draws)
    return Mean(None, 0, None, None) if draws is None else draws.mean()


def _window(model: PreTrainedModel | PeftModel, max_length: int | None) -> int:
    limit = max_positions(model)
    if max_length is None:
        return DEFAULT_WINDOW if limit is None else min(limit, DEFAULT_WINDOW)
    if max_length < 2 or (limit is not None and max_length > limit):
        most = "" if limit is None else f" and at most the model's {limit} positions"
        raise ValueError(f"max_length: {max_length} must be at least 2{most}")
    return max_length


def _windows(ids: tuple[int, ...], window: int) -> list[Continuation]:
    parts = [ids[start : start + window] for start in range(0, len(ids) - 1, window - 1)]
    return [Continuation(part[:1], part[1:]) for part in parts]


def _lines(path: Path) -> list[str]:
    content = read_text(path)
    lines = [line.strip() for line in content.split("\n") if line.strip()]
    if not lines:
        raise InvalidRequestError(f"{path}: holds no text")
    return lines


def _text(record: Any) -> str:
    if isinstance(record, str):
        return _non_empty("text", record)
    if not isinstance(record, dict):
        raise InvalidRequestError(f"must be a string or a JSON object, is {type(record).__name__}")
    if "text" in record:
        return _non_empty("text", record["text"])
    for field in ("prompt", "object"):
        if field not in record:
            raise InvalidRequestError(f"text: is missing, and so is {field}")
    return joined(_non_empty("prompt", record["prompt"]), _non_empty("object", record["object"]))


def _non_empty(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequestError(f"{field}: {value!r} must be a non-empty string")
    return value
