"""How a session asks: in which way, where a request does not say it, and in which dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..editors.asking import default_ask, settled
from ..models.serving import require_serve_dtype
from ..requests import EditRequest
from ..requests.asking import BOTH, PLAIN


@dataclass(frozen=True)
class Asking:
    """How requests are asked.

    Args:
        ask: "plain", "chat" or "both"; None for a model without a chat template, which is asked plainly.
        serve_dtype: Dtype of the model when it answers; None for the one that it has.
        search_ask: "plain" lets the editor search by the prompts alone what is asked both ways, where a consolidation
            will see to the chat; None lets it search as is asked.
    """

    ask: str | None = None
    serve_dtype: str | None = None
    search_ask: str | None = None

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        ask: str | None,
        serve_dtype: str | None,
        facts: Mapping[str, Any],
        search_ask: str | None = None,
    ) -> Asking:
        """What is asked for, or else what a history says, or else what fits the model.

        Raises:
            ValueError: A value is unknown.
            UnsupportedModelError: The model cannot be asked so.
        """
        serve_dtype = facts.get("serve_dtype") if serve_dtype is None else serve_dtype
        require_serve_dtype(serve_dtype)
        search_ask = facts.get("search_ask") if search_ask is None else search_ask
        if search_ask not in (None, PLAIN):
            raise ValueError(f"search_ask: {search_ask!r} must be {PLAIN!r}, or left out")
        return cls(default_ask(tokenizer, facts.get("ask") if ask is None else ask), serve_dtype, search_ask)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype itself."""
        return require_serve_dtype(self.serve_dtype)

    def facts(self) -> dict[str, Any]:
        """What a history says of it; nothing where nothing is special."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def settled(self, request: EditRequest) -> EditRequest:
        """The request with the way in which it is asked, so that whoever asks it again asks the same."""
        return settled([request], self.ask)[0]

    def searched(self, request: EditRequest) -> EditRequest:
        """The request as the editor sees it."""
        return replace(request, ask=PLAIN) if request.ask == BOTH and self.search_ask == PLAIN else request
